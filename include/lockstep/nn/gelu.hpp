#pragma once

#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// output = input * P(a standard normal value is below input), element by element: Hendrycks and Gimpel 2016,
/// by the error function, not an approximation by tanh.
class Gelu final : public Layer {
 public:
  std::string_view kind() const noexcept override { return "gelu"; }
  std::string describe() const override { return "gelu"; }
  Shape declare(State&, const std::string&, const Shape& input) override { return input; }

  void forward(const Pass&, std::span<const float> input, std::span<float> output,
               std::span<float>) const override {
    lockstep::gelu(input, output);
  }

  void backward(const Pass&, std::span<const float> input, std::span<const float>,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float>,
                std::span<float>) const override {
    if (!input_gradient.empty()) gelu_backward(input, output_gradient, input_gradient);
  }
};

}  // namespace lockstep
