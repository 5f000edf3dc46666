#include <algorithm>
#include <cmath>

#include <lockstep/session/scaffold.hpp>

namespace lockstep {
namespace {

Scaffold::Names not_finite(const std::vector<Tensor>& tensors) {
  Scaffold::Names names;
  for (const Tensor& tensor : tensors) {
    if (!std::ranges::all_of(tensor.values(), [](float value) { return std::isfinite(value); })) {
      names.push_back(tensor.name());
    }
  }
  return names;
}

}  // namespace

Scaffold& Scaffold::finalize() {
  if (!init) init = [](State&) {};
  if (!init_fn) init_fn = [](State&) {};
  if (!ready_for_local_init) {
    ready_for_local_init = [](const State& state) { return not_finite(state.parameter_tensors()); };
  }
  if (!local_init) local_init = [](State&) {};
  if (!ready) {
    ready = [](const State& state) {
      Names names = not_finite(state.parameter_tensors());
      const Names buffers = not_finite(state.buffer_tensors());
      names.insert(names.end(), buffers.begin(), buffers.end());
      return names;
    };
  }
  if (!summary) summary = [](SummaryWriter&, const State&, std::int64_t) {};
  return *this;
}

bool Scaffold::finalized() const noexcept {
  return init && init_fn && ready_for_local_init && local_init && ready && summary;
}

}  // namespace lockstep
