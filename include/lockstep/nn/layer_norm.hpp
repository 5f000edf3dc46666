#pragma once

#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// Over the last dimension: output = (input - mean) / sqrt(variance + epsilon) * scale + shift (Ba, Kiros and
/// Hinton 2016). Parameters: "scale" [features], ones at first, and "shift" [features], zeros at first.
class LayerNorm final : public Layer {
 public:
  static constexpr float kEpsilon = 1e-5F;

  explicit LayerNorm(float epsilon = kEpsilon);

  std::string_view kind() const noexcept override { return "norm"; }
  std::string describe() const override;
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  void initialize(const State& state, std::uint64_t seed) const override;
  std::size_t scratch_size(std::int64_t samples) const override;
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 private:
  float epsilon_;
  std::size_t rows_ = 0;  // of a sample
  std::size_t features_ = 0;
  Tensor scale_;
  Tensor shift_;
};

}  // namespace lockstep
