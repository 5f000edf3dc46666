#pragma once

#include <lockstep/nn/convolution_layer.hpp>

namespace lockstep {

/// As Conv2d, over volumes [depth, height, width, channels], or [depth, height, width] as one channel.
/// Weights are [kernel, kernel, kernel, channels / groups, filters].
class Conv3d final : public ConvolutionLayer {
 public:
  Conv3d(std::int64_t filters, std::int64_t kernel, ConvolutionOptions options = {})
      : ConvolutionLayer(3, filters, kernel, options) {}
  std::string_view kind() const noexcept override { return "conv3d"; }
};

}  // namespace lockstep
