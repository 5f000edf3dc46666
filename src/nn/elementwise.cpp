#include <algorithm>
#include <cstddef>

#include <lockstep/nn/elementwise.hpp>

namespace lockstep {
namespace {

// Written so that a NaN stays one: the comparison is false for it.
float positive_part(float x) noexcept {
  return x < 0.0F ? 0.0F : x;
}

}  // namespace

void add_bias(std::span<float> rows, std::span<const float> bias) noexcept {
  const std::size_t columns = bias.size();
  const float* __restrict add = bias.data();
  for (std::size_t begin = 0; begin < rows.size(); begin += columns) {
    float* __restrict row = rows.data() + begin;
    for (std::size_t j = 0; j < columns; ++j) row[j] += add[j];
  }
}

void add_bias_relu(std::span<float> rows, std::span<const float> bias) noexcept {
  const std::size_t columns = bias.size();
  const float* __restrict add = bias.data();
  for (std::size_t begin = 0; begin < rows.size(); begin += columns) {
    float* __restrict row = rows.data() + begin;
    for (std::size_t j = 0; j < columns; ++j) row[j] = positive_part(row[j] + add[j]);
  }
}

void relu(std::span<const float> input, std::span<float> output) noexcept {
  const float* from = input.data();
  float* to = output.data();
  for (std::size_t i = 0; i < output.size(); ++i) to[i] = positive_part(from[i]);
}

void relu_backward(std::span<const float> output, std::span<const float> output_gradient,
                   std::span<float> input_gradient) noexcept {
  const float* out = output.data();
  const float* from = output_gradient.data();
  float* to = input_gradient.data();
  for (std::size_t i = 0; i < input_gradient.size(); ++i) {
    const float gradient = from[i];
    to[i] = out[i] <= 0.0F ? 0.0F : gradient;
  }
}

void column_sums(std::span<const float> rows, std::span<float> sums) noexcept {
  const std::size_t columns = sums.size();
  float* __restrict sum = sums.data();
  std::fill(sums.begin(), sums.end(), 0.0F);
  for (std::size_t begin = 0; begin < rows.size(); begin += columns) {
    const float* __restrict row = rows.data() + begin;
    for (std::size_t j = 0; j < columns; ++j) sum[j] += row[j];
  }
}

void transpose(std::size_t rows, std::size_t columns, std::span<const float> input,
               std::span<float> output) noexcept {
  constexpr std::size_t kTile = 16;  // a tile's rows are cache lines, and it fits the vector registers
  const float* __restrict from = input.data();
  float* __restrict to = output.data();
  for (std::size_t i = 0; i < rows; i += kTile) {
    for (std::size_t j = 0; j < columns; j += kTile) {
      if (i + kTile > rows || j + kTile > columns) {
        for (std::size_t x = i; x < std::min(i + kTile, rows); ++x) {
          for (std::size_t y = j; y < std::min(j + kTile, columns); ++y)
            to[y * rows + x] = from[x * columns + y];
        }
        continue;
      }
      float tile[kTile][kTile];
      for (std::size_t x = 0; x < kTile; ++x) {
        for (std::size_t y = 0; y < kTile; ++y) tile[y][x] = from[(i + x) * columns + j + y];
      }
      for (std::size_t y = 0; y < kTile; ++y) {
        for (std::size_t x = 0; x < kTile; ++x) to[(j + y) * rows + i + x] = tile[y][x];
      }
    }
  }
}

double sum_of_squares(std::span<const float> values) noexcept {
  return sum_of_squares(values.size(), [x = values.data()](std::size_t i) { return x[i]; });
}

}  // namespace lockstep
