#pragma once

#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// output = max(input, 0), element by element. Behind a Dense, prefer Dense{n, Activation::relu}: the same
/// function with one pass over memory less, and initial weights that suit it.
class Relu final : public Layer {
 public:
  std::string_view kind() const noexcept override { return "relu"; }
  std::string describe() const override { return "relu"; }
  Shape declare(State&, const std::string&, const Shape& input) override { return input; }

  void forward(const Pass&, std::span<const float> input, std::span<float> output,
               std::span<float>) const override {
    relu(input, output);
  }

  void backward(const Pass&, std::span<const float>, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float>,
                std::span<float>) const override {
    if (!input_gradient.empty()) relu_backward(output, output_gradient, input_gradient);
  }
};

}  // namespace lockstep
