#pragma once

#include <lockstep/nn/layer.hpp>
#include <lockstep/nn/pooling.hpp>

namespace lockstep {

/// The mean of each window of each channel. Samples are [height, width, channels], or
/// [height, width] as one channel; what is left over at the end of a row or column is not seen.
class AvgPool2d final : public Layer {
 public:
  /// Windows of `size` x `size`, `stride` apart (0: the size). Throws UsageError for a size below 1.
  explicit AvgPool2d(std::int64_t size, std::int64_t stride = 0) : pooling_(size, stride) {}

  std::string_view kind() const noexcept override { return "avg_pool"; }
  std::string describe() const override;
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 private:
  Pooling pooling_;
};

}  // namespace lockstep
