#pragma once

#include <lockstep/nn/convolution_layer.hpp>

namespace lockstep {

/// Convolution over [height, width, channels], or [height, width] as one channel:
///
///     Conv2d{32, 3, {.stride = 2, .padding = 1}}
///
/// gives [height', width', 32]. Parameters: "weight" [kernel, kernel, channels / groups, filters] and, unless
/// left out, "bias" [filters].
class Conv2d final : public ConvolutionLayer {
 public:
  Conv2d(std::int64_t filters, std::int64_t kernel, ConvolutionOptions options = {})
      : ConvolutionLayer(2, filters, kernel, options) {}
  std::string_view kind() const noexcept override { return "conv"; }
};

}  // namespace lockstep
