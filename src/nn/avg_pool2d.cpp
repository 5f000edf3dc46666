#include <algorithm>

#include <fmt/format.h>

#include <lockstep/nn/avg_pool2d.hpp>

namespace lockstep {

std::string AvgPool2d::describe() const {
  return fmt::format("avg_pool {}, stride {}", pooling_.size, pooling_.stride);
}

Shape AvgPool2d::declare(State&, const std::string&, const Shape& input) {
  return pooling_.fit(kind(), input);
}

void AvgPool2d::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                        std::span<float>) const {
  const Pooling& p = pooling_;
  const float share = 1.0F / static_cast<float>(p.size * p.size);
  std::size_t at = 0;
  for (std::size_t sample = 0; sample < static_cast<std::size_t>(pass.samples); ++sample) {
    for (std::size_t row = 0; row < p.rows; ++row) {
      for (std::size_t column = 0; column < p.columns; ++column, at += p.channels) {
        float* __restrict sum = output.data() + at;
        std::fill_n(sum, p.channels, 0.0F);
        for (std::size_t y = 0; y < p.size; ++y) {
          for (std::size_t x = 0; x < p.size; ++x) {
            const float* __restrict pixel =
                input.data() +
                ((sample * p.height + row * p.stride + y) * p.width + column * p.stride + x) * p.channels;
            for (std::size_t c = 0; c < p.channels; ++c) sum[c] += pixel[c];
          }
        }
        for (std::size_t c = 0; c < p.channels; ++c) sum[c] *= share;
      }
    }
  }
}

void AvgPool2d::backward(const Pass& pass, std::span<const float>, std::span<const float>,
                         std::span<float> output_gradient, std::span<float> input_gradient, std::span<float>,
                         std::span<float>) const {
  if (input_gradient.empty()) return;
  std::ranges::fill(input_gradient, 0.0F);
  const Pooling& p = pooling_;
  const float share = 1.0F / static_cast<float>(p.size * p.size);
  std::size_t at = 0;
  for (std::size_t sample = 0; sample < static_cast<std::size_t>(pass.samples); ++sample) {
    for (std::size_t row = 0; row < p.rows; ++row) {
      for (std::size_t column = 0; column < p.columns; ++column, at += p.channels) {
        const float* __restrict gradient = output_gradient.data() + at;
        for (std::size_t y = 0; y < p.size; ++y) {
          for (std::size_t x = 0; x < p.size; ++x) {
            float* __restrict pixel =
                input_gradient.data() +
                ((sample * p.height + row * p.stride + y) * p.width + column * p.stride + x) * p.channels;
            for (std::size_t c = 0; c < p.channels; ++c) pixel[c] += gradient[c] * share;
          }
        }
      }
    }
  }
}

}  // namespace lockstep
