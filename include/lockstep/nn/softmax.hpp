#pragma once

#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// Over the last dimension: output_j = e^input_j / (e^input_0 + e^input_1 + ...). A classifier that is
/// trained with SoftmaxCrossEntropy does not end with it: that loss takes logits.
class Softmax final : public Layer {
 public:
  std::string_view kind() const noexcept override { return "softmax"; }
  std::string describe() const override { return "softmax"; }
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 private:
  std::size_t features_ = 1;
};

}  // namespace lockstep
