#pragma once

#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// For each channel (the last dimension): output = (input - mean) / sqrt(variance + epsilon) * scale + shift
/// (Ioffe and Szegedy 2015), then max(x, 0) if wanted.
///
/// In training, mean and variance are those of the micro-batch, so that the bits do not depend on the number
/// of ranks: another micro_batch is another function. In evaluation they are the running ones, which move
/// with each step by `momentum` towards the mean over the micro-batches (of the unbiased variances).
///
/// Parameters: "scale" [channels], ones at first, and "shift" [channels], zeros at first. Buffers:
/// "running_mean", zeros at first, and "running_variance", ones at first.
class BatchNorm final : public Layer {
 public:
  enum class Then { nothing, relu };

  static constexpr float kMomentum = 0.1F;
  static constexpr float kEpsilon = 1e-5F;

  explicit BatchNorm(Then then = Then::nothing, float momentum = kMomentum, float epsilon = kEpsilon);

  std::string_view kind() const noexcept override { return "norm"; }
  std::string describe() const override;
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  void initialize(const State& state, std::uint64_t seed) const override;
  std::size_t scratch_size(std::int64_t samples) const override;
  /// Throws UsageError in training for a single value a channel: one sample of one position.
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 private:
  Then then_;
  float momentum_;
  float epsilon_;
  std::size_t channels_ = 0;
  Tensor scale_;
  Tensor shift_;
  Tensor running_mean_;
  Tensor running_variance_;
};

}  // namespace lockstep
