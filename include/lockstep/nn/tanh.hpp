#pragma once

#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// output = tanh(input), element by element.
class Tanh final : public Layer {
 public:
  std::string_view kind() const noexcept override { return "tanh"; }
  std::string describe() const override { return "tanh"; }
  Shape declare(State&, const std::string&, const Shape& input) override { return input; }

  void forward(const Pass&, std::span<const float> input, std::span<float> output,
               std::span<float>) const override {
    lockstep::tanh(input, output);
  }

  void backward(const Pass&, std::span<const float>, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float>,
                std::span<float>) const override {
    if (!input_gradient.empty()) tanh_backward(output, output_gradient, input_gradient);
  }
};

}  // namespace lockstep
