#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/dense.hpp>
#include <lockstep/nn/elementwise.hpp>

namespace lockstep {
namespace {

constexpr std::int64_t kFewRows = 256;  // up to which the gradient of the inputs is computed transposed

}  // namespace

Dense::Dense(std::int64_t outputs, Activation activation)
    : Dense(outputs, DenseOptions{.activation = activation}) {}

Dense::Dense(std::int64_t outputs, DenseOptions options) : outputs_(outputs), options_(options) {
  if (outputs < 1) throw UsageError(fmt::format("a dense layer needs at least 1 output (got {})", outputs));
}

std::string Dense::describe() const {
  return fmt::format("dense {} -> {}{}{}", inputs_, outputs_,
                     options_.activation == Activation::relu ? ", relu" : "",
                     options_.each_position ? ", each position" : "");
}

Shape Dense::declare(State& state, const std::string& name, const Shape& input) {
  Shape output{outputs_};
  inputs_ = element_count(input);
  if (options_.each_position) {
    if (input.empty()) throw UsageError("a dense layer over positions needs at least one dimension");
    inputs_ = input.back();
    rows_ = element_count(input) / inputs_;
    output = input;
    output.back() = outputs_;
  }
  weight_ = state.parameter(name + "/weight", {inputs_, outputs_});
  if (options_.bias) bias_ = state.parameter(name + "/bias", {outputs_});
  return output;
}

void Dense::initialize(const State& state, std::uint64_t seed) const {
  if (options_.deviation > 0) {
    fill_normal(state, weight_, seed, options_.deviation);
  } else {
    const bool relu = options_.activation == Activation::relu;
    const double fan = static_cast<double>(relu ? inputs_ : inputs_ + outputs_);
    fill_uniform(state, weight_, seed, static_cast<float>(std::sqrt(6.0 / fan)));
  }
  if (options_.bias) std::ranges::fill(bias_.values(), 0.0F);
}

std::size_t Dense::room_size(std::int64_t samples) const {
  const std::int64_t rows = rows_ * samples;
  return rows > kFewRows ? 0 : static_cast<std::size_t>(inputs_ * rows);
}

void Dense::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                    std::span<float>) const {
  const bool cut = options_.activation == Activation::relu;
  if (options_.bias) {
    pass.kernels.affine(rows_ * pass.samples, outputs_, inputs_, input.data(), weight_.values().data(),
                        bias_.values(), cut, output.data());
    return;
  }
  pass.kernels.gemm(Transpose::no, Transpose::no, rows_ * pass.samples, outputs_, inputs_, input.data(),
                    inputs_, weight_.values().data(), outputs_, false, output.data(), outputs_);
  if (cut) relu(output, output);
}

void Dense::backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                     std::span<float> output_gradient, std::span<float> input_gradient,
                     std::span<float> gradients, std::span<float>) const {
  const std::int64_t rows = rows_ * pass.samples;
  if (options_.activation == Activation::relu) relu_backward(output, output_gradient, output_gradient);
  pass.kernels.gemm(Transpose::yes, Transpose::no, inputs_, outputs_, rows, input.data(), inputs_,
                    output_gradient.data(), outputs_, false, weight_.in(gradients).data(), outputs_);
  if (options_.bias) column_sums(output_gradient, bias_.in(gradients));
  if (input_gradient.empty()) return;
  if (rows > kFewRows) {
    pass.kernels.gemm(Transpose::no, Transpose::yes, rows, inputs_, outputs_, output_gradient.data(),
                      outputs_, weight_.values().data(), outputs_, false, input_gradient.data(), inputs_);
    return;
  }
  // The transposed product, weight * output_gradient^T, and back: libraries have to rearrange a transposed
  // right matrix, which this way is the small one and not the weights. A third faster for 32 samples.
  pass.kernels.gemm(Transpose::no, Transpose::yes, inputs_, rows, outputs_, weight_.values().data(), outputs_,
                    output_gradient.data(), outputs_, false, pass.room.data(), rows);
  transpose(static_cast<std::size_t>(inputs_), static_cast<std::size_t>(rows), pass.room, input_gradient);
}

}  // namespace lockstep
