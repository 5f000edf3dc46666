#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace lockstep {

/// Sizes of a convolution over up to three spatial dimensions (depth, height, width; unused ones have an
/// extent and a kernel of 1).
struct ConvolutionShape {
  std::array<std::int64_t, 3> input = {1, 1, 1};
  std::array<std::int64_t, 3> kernel = {1, 1, 1};
  std::array<std::int64_t, 3> stride = {1, 1, 1};
  std::array<std::int64_t, 3> padding = {0, 0, 0};  ///< zeros on both sides
  std::int64_t input_channels = 1;
  std::int64_t output_channels = 1;
  std::int64_t groups = 1;  ///< divides both; channels of one group see those of that group alone

  std::int64_t output(std::size_t dimension) const noexcept {
    return (input[dimension] + 2 * padding[dimension] - kernel[dimension]) / stride[dimension] + 1;
  }
  std::int64_t input_positions() const noexcept { return input[0] * input[1] * input[2]; }
  std::int64_t output_positions() const noexcept { return output(0) * output(1) * output(2); }
  std::int64_t window() const noexcept { return kernel[0] * kernel[1] * kernel[2]; }
  std::int64_t weights() const noexcept { return window() * (input_channels / groups) * output_channels; }

  /// Multiplications and additions for one sample.
  std::int64_t flops() const noexcept { return 2 * output_positions() * weights(); }
};

/// A convolution (as networks have it: no kernel is mirrored) of fixed sizes, made once by Kernels for one
/// thread. Samples are [depth, height, width, channels]; weights are
/// [kernel depth, height, width, input channels / groups, output channels].
///
/// The bits of a result depend on the values, the sizes and the number of samples alone. Allocates nothing
/// after the first call with a number of samples, but for a few small objects of a library that does so in
/// every call.
class Convolution {
 public:
  virtual ~Convolution() = default;

  /// output = input * weight + bias; no bias where it is empty.
  virtual void forward(std::int64_t samples, std::span<const float> input, std::span<const float> weight,
                       std::span<const float> bias, std::span<float> output) = 0;

  virtual void input_gradient(std::int64_t samples, std::span<const float> output_gradient,
                              std::span<const float> weight, std::span<float> input_gradient) = 0;

  /// Writes (does not add) the sum over samples. `bias_gradient` may be empty.
  virtual void weight_gradient(std::int64_t samples, std::span<const float> input,
                               std::span<const float> output_gradient, std::span<float> weight_gradient,
                               std::span<float> bias_gradient) = 0;
};

}  // namespace lockstep
