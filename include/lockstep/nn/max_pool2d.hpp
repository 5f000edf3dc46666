#pragma once

#include <lockstep/nn/layer.hpp>
#include <lockstep/nn/pooling.hpp>

namespace lockstep {

/// The largest value of each window of each channel; the first one where several are largest, and NaN where
/// there is one. Samples are [height, width, channels], or
/// [height, width] as one channel; what is left over at the end of a row or column is not seen.
class MaxPool2d final : public Layer {
 public:
  /// Windows of `size` x `size`, `stride` apart (0: the size). Throws UsageError for a size below 1.
  explicit MaxPool2d(std::int64_t size, std::int64_t stride = 0) : pooling_(size, stride) {}

  std::string_view kind() const noexcept override { return "max_pool"; }
  std::string describe() const override;
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  std::size_t scratch_size(std::int64_t samples) const override;
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 private:
  Pooling pooling_;
};

}  // namespace lockstep
