#include <algorithm>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/layer.hpp>

namespace lockstep {

void Layer::initialize(const State&, std::uint64_t) const {}

std::unique_ptr<Plan> Layer::plan(const Kernels&, std::int64_t) const {
  return nullptr;
}

std::size_t Layer::scratch_size(std::int64_t) const {
  return 0;
}

std::size_t Layer::room_size(std::int64_t) const {
  return 0;
}

std::int64_t Layer::flops_per_sample() const {
  return 0;
}

Random initial_random(const State& state, const Tensor& tensor, std::uint64_t seed) {
  const auto& tensors = state.parameter_tensors();
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const Tensor& other) { return other.offset() == tensor.offset(); });
  if (found == tensors.end() || found->name() != tensor.name()) {
    throw InternalError("'" + tensor.name() + "' is no parameter of this State");
  }
  return Random(seed, Purpose::initial_values, static_cast<std::uint32_t>(found - tensors.begin()));
}

void fill_normal(const State& state, const Tensor& tensor, std::uint64_t seed, float deviation) {
  const Random random = initial_random(state, tensor, seed);
  std::uint32_t i = 0;
  for (float& value : tensor.values()) value = random.normal(i++) * deviation;
}

void fill_uniform(const State& state, const Tensor& tensor, std::uint64_t seed, float limit) {
  const std::span<float> values = tensor.values();
  initial_random(state, tensor, seed).fill_uniform(values);
  for (float& value : values) value = (2.0F * value - 1.0F) * limit;
}

}  // namespace lockstep
