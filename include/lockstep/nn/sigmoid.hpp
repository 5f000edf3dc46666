#pragma once

#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// output = 1 / (1 + e^-input), element by element.
class Sigmoid final : public Layer {
 public:
  std::string_view kind() const noexcept override { return "sigmoid"; }
  std::string describe() const override { return "sigmoid"; }
  Shape declare(State&, const std::string&, const Shape& input) override { return input; }

  void forward(const Pass&, std::span<const float> input, std::span<float> output,
               std::span<float>) const override {
    lockstep::sigmoid(input, output);
  }

  void backward(const Pass&, std::span<const float>, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float>,
                std::span<float>) const override {
    if (!input_gradient.empty()) sigmoid_backward(output, output_gradient, input_gradient);
  }
};

}  // namespace lockstep
