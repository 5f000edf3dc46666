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

namespace {

// A NaN wins, and stays: no comparison with it is true.
bool wins(float x, float best) noexcept {
  return static_cast<bool>(static_cast<int>(!(x <= best)) & static_cast<int>(best == best));
}

}  // namespace

void MaxPool2d::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                        std::span<float> scratch) const {
  const Pooling& p = pooling_;
  std::size_t at = 0;
  for (std::size_t sample = 0; sample < static_cast<std::size_t>(pass.samples); ++sample) {
    for (std::size_t row = 0; row < p.rows; ++row) {
      for (std::size_t column = 0; column < p.columns; ++column, at += p.channels) {
        float* __restrict best = output.data() + at;
        float* __restrict which = scratch.data() + at;
        const float* __restrict corner =
            input.data() + ((sample * p.height + row * p.stride) * p.width + column * p.stride) * p.channels;
        if (p.size == 1) {
          std::copy_n(corner, p.channels, best);
          std::fill_n(which, p.channels, 0.0F);
          continue;
        }
        const float* __restrict next = corner + p.channels;
        for (std::size_t c = 0; c < p.channels; ++c) {
          const bool better = wins(next[c], corner[c]);
          best[c] = better ? next[c] : corner[c];
          which[c] = better ? 1.0F : 0.0F;
        }
        for (std::size_t number = 2; number < p.size * p.size; ++number) {
          const float* __restrict pixel = corner + (number / p.size * p.width + number % p.size) * p.channels;
          for (std::size_t c = 0; c < p.channels; ++c) {
            const bool better = wins(pixel[c], best[c]);
            best[c] = better ? pixel[c] : best[c];
            which[c] = better ? static_cast<float>(number) : which[c];
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
  const Pooling& p = pooling_;
  // Each pixel is in one window, so that its gradient can be written, not added.
  const bool apart = p.stride == p.size && p.rows * p.size == p.height && p.columns * p.size == p.width;
  if (!apart) std::ranges::fill(input_gradient, 0.0F);
  std::size_t at = 0;
  for (std::size_t sample = 0; sample < static_cast<std::size_t>(pass.samples); ++sample) {
    for (std::size_t row = 0; row < p.rows; ++row) {
      for (std::size_t column = 0; column < p.columns; ++column, at += p.channels) {
        const float* __restrict gradient = output_gradient.data() + at;
        const float* __restrict which = scratch.data() + at;
        float* __restrict corner =
            input_gradient.data() +
            ((sample * p.height + row * p.stride) * p.width + column * p.stride) * p.channels;
        for (std::size_t i = 0; i < p.size * p.size; ++i) {
          float* __restrict pixel = corner + (i / p.size * p.width + i % p.size) * p.channels;
          const auto number = static_cast<float>(i);
          if (apart) {
            for (std::size_t c = 0; c < p.channels; ++c) pixel[c] = which[c] == number ? gradient[c] : 0.0F;
          } else {
            for (std::size_t c = 0; c < p.channels; ++c) pixel[c] += which[c] == number ? gradient[c] : 0.0F;
          }
        }
      }
    }
  }
}

}  // namespace lockstep
