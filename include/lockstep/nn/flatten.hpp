#pragma once

#include <algorithm>

#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// The same values in the same order, as samples of one dimension. Not needed before a Dense, which takes
/// samples of any shape.
class Flatten final : public Layer {
 public:
  std::string_view kind() const noexcept override { return "flatten"; }
  std::string describe() const override { return "flatten"; }
  Shape declare(State&, const std::string&, const Shape& input) override { return {element_count(input)}; }

  void forward(const Pass&, std::span<const float> input, std::span<float> output,
               std::span<float>) const override {
    std::ranges::copy(input, output.begin());
  }

  void backward(const Pass&, std::span<const float>, std::span<const float>, std::span<float> output_gradient,
                std::span<float> input_gradient, std::span<float>, std::span<float>) const override {
    if (!input_gradient.empty()) std::ranges::copy(output_gradient, input_gradient.begin());
  }
};

}  // namespace lockstep
