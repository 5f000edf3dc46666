#include <algorithm>
#include <cstddef>

#include <lockstep/nn/elementwise.hpp>

#include "approximations.hpp"

namespace lockstep {
namespace {

template <class Function>
void map(std::span<const float> input, std::span<float> output, Function&& function) noexcept {
  const float* from = input.data();
  float* to = output.data();
  for (std::size_t i = 0; i < output.size(); ++i) to[i] = function(from[i]);
}

/// Two in, one out. `output` may be `second`.
template <class Function>
void map(std::span<const float> first, std::span<const float> second, std::span<float> output,
         Function&& function) noexcept {
  const float* a = first.data();
  const float* b = second.data();
  float* to = output.data();
  for (std::size_t i = 0; i < output.size(); ++i) to[i] = function(a[i], b[i]);
}

constexpr float kSqrtHalf = 0.70710678F;
constexpr float kGaussian = 0.39894228F;  // 1 / sqrt(2 pi)

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

void tanh(std::span<const float> input, std::span<float> output) noexcept {
  map(input, output, [](float x) { return fast_tanh(x); });
}

void tanh_backward(std::span<const float> output, std::span<const float> output_gradient,
                   std::span<float> input_gradient) noexcept {
  map(output, output_gradient, input_gradient, [](float y, float g) { return g * (1.0F - y * y); });
}

void sigmoid(std::span<const float> input, std::span<float> output) noexcept {
  map(input, output, [](float x) { return fast_sigmoid(x); });
}

void sigmoid_backward(std::span<const float> output, std::span<const float> output_gradient,
                      std::span<float> input_gradient) noexcept {
  map(output, output_gradient, input_gradient, [](float y, float g) { return g * (y * (1.0F - y)); });
}

void gelu(std::span<const float> input, std::span<float> output) noexcept {
  map(input, output, [](float x) { return x * 0.5F * (1.0F + fast_erf(x * kSqrtHalf)); });
}

void gelu_backward(std::span<const float> input, std::span<const float> output_gradient,
                   std::span<float> input_gradient) noexcept {
  map(input, output_gradient, input_gradient, [](float x, float g) {
    const float e = fast_exp_below_zero(-0.5F * x * x);
    const float below = normal_tail(x < 0.0F ? -x : x, e);
    const float share = x < 0.0F ? below : 1.0F - below;
    return g * (share + x * kGaussian * e);
  });
}

void silu(std::span<const float> input, std::span<float> output) noexcept {
  map(input, output, [](float x) { return x * fast_sigmoid(x); });
}

void silu_backward(std::span<const float> input, std::span<const float> output_gradient,
                   std::span<float> input_gradient) noexcept {
  map(input, output_gradient, input_gradient, [](float x, float g) {
    const float s = fast_sigmoid(x);
    return g * (s + x * s * (1.0F - s));
  });
}

float exp_and_sum(std::span<float> values, float shift) noexcept {
  constexpr std::size_t kLanes = 16;
  float lanes[kLanes] = {};
  float* x = values.data();
  const std::size_t count = values.size();
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const float e = fast_exp(x[i + lane] - shift);
      x[i + lane] = e;
      lanes[lane] += e;
    }
  }
  for (std::size_t lane = 0; i + lane < count; ++lane) {
    const float e = fast_exp(x[i + lane] - shift);
    x[i + lane] = e;
    lanes[lane] += e;
  }
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

float largest(std::span<const float> values) noexcept {
  constexpr std::size_t kLanes = 16;
  const float* x = values.data();
  const std::size_t count = values.size();
  // A NaN wins and stays: no comparison with it is true.
  const auto larger = [](float a, float b) { return a != a ? a : (b <= a ? a : b); };
  float lanes[kLanes];
  for (float& lane : lanes) lane = x[0];
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = larger(lanes[lane], x[i + lane]);
  }
  for (; i < count; ++i) lanes[0] = larger(lanes[0], x[i]);
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] = larger(lanes[lane], lanes[lane + half]);
  }
  return lanes[0];
}

void add(std::span<const float> source, std::span<float> target) noexcept {
  const float* from = source.data();
  float* to = target.data();
  for (std::size_t i = 0; i < target.size(); ++i) to[i] += from[i];
}

void column_sums(std::span<const float> rows, std::span<float> sums) noexcept {
  constexpr std::size_t kTogether = 4;  // rows: the running sums wait for memory only once
  const std::size_t columns = sums.size();
  float* __restrict sum = sums.data();
  std::fill(sums.begin(), sums.end(), 0.0F);
  std::size_t begin = 0;
  for (; begin + kTogether * columns <= rows.size(); begin += kTogether * columns) {
    const float* __restrict a = rows.data() + begin;
    const float* __restrict b = a + columns;
    const float* __restrict c = b + columns;
    const float* __restrict d = c + columns;
    for (std::size_t j = 0; j < columns; ++j) sum[j] += (a[j] + b[j]) + (c[j] + d[j]);
  }
  for (; begin < rows.size(); begin += columns) {
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
