#pragma once

#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// output = input / (1 + e^-input), element by element; also called swish.
class Silu final : public Layer {
 public:
  std::string_view kind() const noexcept override { return "silu"; }
  std::string describe() const override { return "silu"; }
  Shape declare(State&, const std::string&, const Shape& input) override { return input; }

  void forward(const Pass&, std::span<const float> input, std::span<float> output,
               std::span<float>) const override {
    lockstep::silu(input, output);
  }

  void backward(const Pass&, std::span<const float> input, std::span<const float>,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float>,
                std::span<float>) const override {
    if (!input_gradient.empty()) silu_backward(input, output_gradient, input_gradient);
  }
};

}  // namespace lockstep
