#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/dense.hpp>
#include <lockstep/nn/elementwise.hpp>

namespace lockstep {

Dense::Dense(std::int64_t outputs, Activation activation) : outputs_(outputs), activation_(activation) {
  if (outputs < 1) throw UsageError(fmt::format("a dense layer needs at least 1 output (got {})", outputs));
}

std::string Dense::describe() const {
  return fmt::format("dense {} -> {}{}", inputs_, outputs_, activation_ == Activation::relu ? ", relu" : "");
}

Shape Dense::declare(State& state, const std::string& name, const Shape& input) {
  inputs_ = element_count(input);
  weight_ = state.parameter(name + "/weight", {inputs_, outputs_});
  bias_ = state.parameter(name + "/bias", {outputs_});
  return {outputs_};
}

void Dense::initialize(const State& state, std::uint64_t seed) const {
  const double fan = static_cast<double>(activation_ == Activation::relu ? inputs_ : inputs_ + outputs_);
  fill_uniform(state, weight_, seed, static_cast<float>(std::sqrt(6.0 / fan)));
  std::ranges::fill(bias_.values(), 0.0F);
}

// For the transposed gradient of the input.
std::size_t Dense::scratch_size(std::int64_t samples) const {
  return static_cast<std::size_t>(inputs_ * samples);
}

void Dense::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                    std::span<float>) const {
  pass.kernels.gemm(Transpose::no, Transpose::no, pass.samples, outputs_, inputs_, input.data(), inputs_,
                    weight_.values().data(), outputs_, false, output.data(), outputs_);
  if (activation_ == Activation::relu) {
    add_bias_relu(output, bias_.values());
  } else {
    add_bias(output, bias_.values());
  }
}

void Dense::backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                     std::span<float> output_gradient, std::span<float> input_gradient,
                     std::span<float> gradients, std::span<float> scratch) const {
  if (activation_ == Activation::relu) relu_backward(output, output_gradient, output_gradient);
  pass.kernels.gemm(Transpose::yes, Transpose::no, inputs_, outputs_, pass.samples, input.data(), inputs_,
                    output_gradient.data(), outputs_, false, weight_.in(gradients).data(), outputs_);
  column_sums(output_gradient, bias_.in(gradients));
  if (input_gradient.empty()) return;
  // The transposed product, weight * output_gradient^T, and back: libraries have to rearrange a transposed
  // right matrix, which this way is the small one and not the weights. A third faster for 32 samples.
  pass.kernels.gemm(Transpose::no, Transpose::yes, inputs_, pass.samples, outputs_, weight_.values().data(),
                    outputs_, output_gradient.data(), outputs_, false, scratch.data(), pass.samples);
  transpose(static_cast<std::size_t>(inputs_), static_cast<std::size_t>(pass.samples), scratch,
            input_gradient);
}

}  // namespace lockstep
