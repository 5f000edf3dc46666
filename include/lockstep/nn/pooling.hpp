#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include <lockstep/state/tensor.hpp>

namespace lockstep {

/// The sizes of windows over [height, width, channels].
struct Pooling {
  /// A stride of 0 is the size. Throws UsageError for a size below 1 or a stride below 0.
  Pooling(std::int64_t size, std::int64_t stride);

  /// Takes the shape of a sample and returns that of an output. Throws UsageError where no window fits.
  Shape fit(std::string_view layer, const Shape& input);

  std::size_t size = 1;
  std::size_t stride = 1;
  std::size_t height = 0, width = 0, channels = 0;  ///< of a sample
  std::size_t rows = 0, columns = 0;                ///< of an output
};

}  // namespace lockstep
