#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/train/update.hpp>

namespace lockstep {
namespace {

void check_limit(std::string_view what, double value) {
  if (!(value >= 0) || !std::isfinite(value)) {
    throw UsageError(fmt::format("{} is {}; give a number above 0, or 0 for none", what, value));
  }
}

}  // namespace

Update::Update(const Optimizer& optimizer, const State& state, UpdateOptions options,
               const Topology& topology, bool sharded)
    : optimizer_(optimizer),
      layerwise_(dynamic_cast<const LayerwiseOptimizer*>(&optimizer)),
      state_(state),
      options_(std::move(options)),
      slots_(optimizer.slots(state)) {
  check_limit("clip_norm", options_.clip_norm);
  check_limit("clip_value", options_.clip_value);
  check_limit("weight_decay", static_cast<double>(options_.weight_decay));
  for (const Tensor& tensor : state.parameter_tensors()) {
    const std::size_t index = decays_.size();
    decays_.push_back(std::ranges::none_of(options_.no_decay, [&](const std::string& word) {
      return tensor.name().find(word) != std::string::npos;
    }));
    const std::size_t end = tensor.offset() + tensor.size();
    for (std::size_t first = tensor.offset(); first < end;) {
      const std::size_t last = std::min(end, (first / kNormBlock + 1) * kNormBlock);
      parts_.push_back({{first, last}, index});
      first = last;
    }
  }
  trust_ratios_.assign(decays_.size(), 1);
  sums_.resize(decays_.size());
  own_numbers_.resize(2 * parts_.size());
  if (options_.clip_norm == 0 && layerwise_ == nullptr) return;
  if (!sharded) {
    numbers_.emplace(topology, 2 * parts_.size());
    return;
  }
  const auto mine = parts_in(shard_of_node(topology, state.parameter_elements(), topology.my_node));
  const auto first = static_cast<std::size_t>(mine.data() - parts_.data());
  numbers_.emplace(topology, 2 * parts_.size(), ElementRange{2 * first, 2 * (first + mine.size())});
}

std::span<const Update::Part> Update::parts_in(ElementRange range) const {
  const auto at = [&](std::size_t element) {
    return std::partition_point(parts_.begin(), parts_.end(),
                                [&](const Part& part) { return part.range.first < element; });
  };
  return {at(range.first), at(range.last)};
}

/// Where a rank of the node has failed since the sum, the step is lost, and what comes out does not matter.
std::span<const double> Update::exchange(const StepContext& context) {
  return numbers_->exchange([&] { return context.anyone_finished(); });
}

double Update::norm_of(std::span<const float> gradients, std::span<const Part> mine,
                       const StepContext& context) {
  const bool shared = context.shares_parameters();
  const auto first = static_cast<std::size_t>(mine.data() - parts_.data());
  const std::span<double> written = shared ? numbers_->next() : std::span(own_numbers_);
  for (std::size_t i = 0; i < mine.size(); ++i) {
    written[2 * (first + i)] = sum_of_squares(gradients.subspan(mine[i].range.first, mine[i].range.size()));
  }
  const std::span<const double> all = shared ? exchange(context) : written;
  double sum = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) sum += all[2 * i];
  return std::sqrt(sum);
}

void Update::find_trust_ratios(std::span<const float> gradients, std::span<const Part> mine,
                               const StepContext& context, StepScalars scalars) {
  const bool shared = context.shares_parameters();
  const auto first = static_cast<std::size_t>(mine.data() - parts_.data());
  const std::span<double> written = shared ? numbers_->next() : std::span(own_numbers_);
  for (std::size_t i = 0; i < mine.size(); ++i) {
    scalars.weight_decay = decays_[mine[i].tensor] ? options_.weight_decay : 0;
    const SquareSums sums =
        layerwise_->measure(mine[i].range, state_.parameters(), gradients, slots_, scalars);
    written[2 * (first + i)] = sums.parameters;
    written[2 * (first + i) + 1] = sums.update;
  }
  const std::span<const double> all = shared ? exchange(context) : written;
  std::ranges::fill(sums_, SquareSums());
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    sums_[parts_[i].tensor].parameters += all[2 * i];
    sums_[parts_[i].tensor].update += all[2 * i + 1];
  }
  for (std::size_t tensor = 0; tensor < sums_.size(); ++tensor) {
    scalars.weight_decay = options_.weight_decay;
    trust_ratios_[tensor] = decays_[tensor] ? layerwise_->trust_ratio(sums_[tensor], scalars) : 1;
  }
}

void Update::apply(StepContext& context, float learning_rate) {
  const bool shared = context.shares_parameters();
  // Parameters of my own: I need the slices of the sum that others have added up, and update them all. Shared
  // ones: nobody may go on before I have updated my slice, even where that is the whole arena.
  if (!shared) context.finish();
  const std::span<float> parameters = state_.parameters();
  const auto gradients = context.sum().first(parameters.size());
  const ElementRange slice = context.slice();
  const auto mine = parts_in(slice);

  {
    const auto phase = context.trace().phase("update");
    StepScalars scalars{.learning_rate = learning_rate, .step = context.number()};
    if (options_.clip_value > 0) scalars.clip_value = static_cast<float>(options_.clip_value);
    if (options_.clip_norm > 0) {
      gradient_norm_ = norm_of(gradients, mine, context);
      scalars.gradient_scale = clip_scale(*gradient_norm_, options_.clip_norm);
    }
    if (layerwise_ != nullptr) {
      find_trust_ratios(gradients, mine, context, scalars);
      for (const Part& part : mine) {
        scalars.weight_decay = decays_[part.tensor] ? options_.weight_decay : 0;
        scalars.trust_ratio = trust_ratios_[part.tensor];
        optimizer_.apply(part.range, parameters, gradients, slots_, scalars);
      }
    } else {
      if (options_.weight_decay > 0) {
        for (const Part& part : mine) {
          if (decays_[part.tensor])
            decay_weights(part.range, parameters, learning_rate, options_.weight_decay);
        }
      }
      optimizer_.apply(slice, parameters, gradients, slots_, scalars);
    }
  }
  const ElementRange buffers = context.buffer_slice();
  const auto added = context.sum().subspan(parameters.size(), state_.buffers().size());
  for (std::size_t i = buffers.first; i < buffers.last; ++i) state_.buffers()[i] += added[i];
  context.finish();
}

}  // namespace lockstep
