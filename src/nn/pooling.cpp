#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/pooling.hpp>

namespace lockstep {

Pooling::Pooling(std::int64_t size_, std::int64_t stride_) {
  if (size_ < 1 || stride_ < 0) {
    throw UsageError(
        fmt::format("a pooling layer needs windows of at least 1 (got size {}, stride {})", size_, stride_));
  }
  size = static_cast<std::size_t>(size_);
  stride = stride_ == 0 ? size : static_cast<std::size_t>(stride_);
}

Shape Pooling::fit(std::string_view layer, const Shape& input) {
  if (input.size() != 2 && input.size() != 3) {
    throw UsageError(
        fmt::format("a {} layer takes samples [height, width, channels] (got {})", layer, to_string(input)));
  }
  height = static_cast<std::size_t>(input[0]);
  width = static_cast<std::size_t>(input[1]);
  channels = input.size() == 3 ? static_cast<std::size_t>(input[2]) : 1;
  if (height < size || width < size) {
    throw UsageError(
        fmt::format("a {} window of {} is larger than samples of {}", layer, size, to_string(input)));
  }
  rows = (height - size) / stride + 1;
  columns = (width - size) / stride + 1;
  return {static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns),
          static_cast<std::int64_t>(channels)};
}

}  // namespace lockstep
