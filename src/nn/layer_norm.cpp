#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/layer_norm.hpp>

namespace lockstep {
LayerNorm::LayerNorm(float epsilon) : epsilon_(epsilon) {
  if (!(epsilon > 0)) throw UsageError(fmt::format("the epsilon of a norm is above 0 (got {})", epsilon));
}

std::string LayerNorm::describe() const {
  return fmt::format("layer norm {}", features_) +
         (epsilon_ != kEpsilon ? fmt::format(", epsilon {}", epsilon_) : "");
}

Shape LayerNorm::declare(State& state, const std::string& name, const Shape& input) {
  if (input.empty()) throw UsageError("a layer norm needs an input of at least one dimension");
  features_ = static_cast<std::size_t>(input.back());
  rows_ = static_cast<std::size_t>(element_count(input)) / features_;
  scale_ = state.parameter(name + "/scale", {input.back()});
  shift_ = state.parameter(name + "/shift", {input.back()});
  return input;
}

void LayerNorm::initialize(const State&, std::uint64_t) const {
  std::ranges::fill(scale_.values(), 1.0F);
  std::ranges::fill(shift_.values(), 0.0F);
}

// Mean and 1 / deviation of each row.
std::size_t LayerNorm::scratch_size(std::int64_t samples) const {
  return 2 * rows_ * static_cast<std::size_t>(samples);
}

void LayerNorm::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                        std::span<float> scratch) const {
  const float* __restrict scale = scale_.values().data();
  const float* __restrict shift = shift_.values().data();
  const float share = 1.0F / static_cast<float>(features_);
  for (std::size_t row = 0; row < rows_ * static_cast<std::size_t>(pass.samples); ++row) {
    const float* __restrict x = input.data() + row * features_;
    float* __restrict y = output.data() + row * features_;
    const float mean = lane_sum(features_, [&](std::size_t j) { return x[j]; }) * share;
    const float variance =
        lane_sum(features_, [&](std::size_t j) { return (x[j] - mean) * (x[j] - mean); }) * share;
    const float inverse = 1.0F / std::sqrt(variance + epsilon_);
    scratch[2 * row] = mean;
    scratch[2 * row + 1] = inverse;
    for (std::size_t j = 0; j < features_; ++j) y[j] = (x[j] - mean) * inverse * scale[j] + shift[j];
  }
}

void LayerNorm::backward(const Pass& pass, std::span<const float> input, std::span<const float>,
                         std::span<float> output_gradient, std::span<float> input_gradient,
                         std::span<float> gradients, std::span<float> scratch) const {
  const float* __restrict scale = scale_.values().data();
  const std::span<float> scale_gradient = scale_.in(gradients);
  const std::span<float> shift_gradient = shift_.in(gradients);
  std::ranges::fill(scale_gradient, 0.0F);
  std::ranges::fill(shift_gradient, 0.0F);
  float* __restrict to_scale = scale_gradient.data();
  float* __restrict to_shift = shift_gradient.data();
  const float share = 1.0F / static_cast<float>(features_);
  for (std::size_t row = 0; row < rows_ * static_cast<std::size_t>(pass.samples); ++row) {
    const float* __restrict x = input.data() + row * features_;
    const float* __restrict g = output_gradient.data() + row * features_;
    const float mean = scratch[2 * row];
    const float inverse = scratch[2 * row + 1];
    for (std::size_t j = 0; j < features_; ++j) {
      to_scale[j] += g[j] * ((x[j] - mean) * inverse);
      to_shift[j] += g[j];
    }
    if (input_gradient.empty()) continue;
    const float sum = lane_sum(features_, [&](std::size_t j) { return g[j] * scale[j]; }) * share;
    const float along =
        lane_sum(features_, [&](std::size_t j) { return g[j] * scale[j] * ((x[j] - mean) * inverse); }) *
        share;
    float* __restrict to = input_gradient.data() + row * features_;
    for (std::size_t j = 0; j < features_; ++j) {
      to[j] = inverse * (g[j] * scale[j] - sum - (x[j] - mean) * inverse * along);
    }
  }
}

}  // namespace lockstep
