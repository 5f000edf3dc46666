#include <algorithm>

#include <fmt/format.h>

#include <lockstep/nn/max_pool2d.hpp>

namespace lockstep {

std::string MaxPool2d::describe() const {
  return fmt::format("max_pool {}, stride {}", pooling_.size, pooling_.stride);
}

Shape MaxPool2d::declare(State&, const std::string&, const Shape& input) {
  return pooling_.fit(kind(), input);
}

// Which pixel of its window each output is.
std::size_t MaxPool2d::scratch_size(std::int64_t samples) const {
  return static_cast<std::size_t>(samples) * pooling_.rows * pooling_.columns * pooling_.channels;
}

void MaxPool2d::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                        std::span<float> scratch) const {
  const Pooling& p = pooling_;
  std::size_t at = 0;
  for (std::size_t sample = 0; sample < static_cast<std::size_t>(pass.samples); ++sample) {
    for (std::size_t row = 0; row < p.rows; ++row) {
      for (std::size_t column = 0; column < p.columns; ++column, at += p.channels) {
        float* __restrict best = output.data() + at;
        float* __restrict which = scratch.data() + at;
        for (std::size_t y = 0; y < p.size; ++y) {
          for (std::size_t x = 0; x < p.size; ++x) {
            const float* __restrict pixel =
                input.data() +
                ((sample * p.height + row * p.stride + y) * p.width + column * p.stride + x) * p.channels;
            const auto number = static_cast<float>(y * p.size + x);
            if (number == 0) {
              std::copy_n(pixel, p.channels, best);
              std::fill_n(which, p.channels, 0.0F);
              continue;
            }
            for (std::size_t c = 0; c < p.channels; ++c) {
              // A NaN wins, and stays: no comparison with it is true.
              const bool wins = !(pixel[c] <= best[c]) && best[c] == best[c];
              best[c] = wins ? pixel[c] : best[c];
              which[c] = wins ? number : which[c];
            }
          }
        }
      }
    }
  }
}

void MaxPool2d::backward(const Pass& pass, std::span<const float>, std::span<const float>,
                         std::span<float> output_gradient, std::span<float> input_gradient, std::span<float>,
                         std::span<float> scratch) const {
  if (input_gradient.empty()) return;
  std::ranges::fill(input_gradient, 0.0F);
  const Pooling& p = pooling_;
  std::size_t at = 0;
  for (std::size_t sample = 0; sample < static_cast<std::size_t>(pass.samples); ++sample) {
    for (std::size_t row = 0; row < p.rows; ++row) {
      for (std::size_t column = 0; column < p.columns; ++column, at += p.channels) {
        const float* __restrict gradient = output_gradient.data() + at;
        const float* __restrict which = scratch.data() + at;
        for (std::size_t y = 0; y < p.size; ++y) {
          for (std::size_t x = 0; x < p.size; ++x) {
            float* __restrict pixel =
                input_gradient.data() +
                ((sample * p.height + row * p.stride + y) * p.width + column * p.stride + x) * p.channels;
            const auto number = static_cast<float>(y * p.size + x);
            for (std::size_t c = 0; c < p.channels; ++c) pixel[c] += which[c] == number ? gradient[c] : 0.0F;
          }
        }
      }
    }
  }
}

}  // namespace lockstep
