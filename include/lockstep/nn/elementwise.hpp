#pragma once

#include <cstddef>
#include <span>

namespace lockstep {

/// Loops over rows of floats that layers share. Each result is a function of the values alone: every element
/// is computed by the same operations whatever vectors the compiler forms, and sums run in one fixed order.
/// A NaN among the inputs that matter for a result makes it NaN.

/// Adds `bias` to every row of `rows` (row-major, bias.size() columns).
void add_bias(std::span<float> rows, std::span<const float> bias) noexcept;

/// The same, then max(x, 0).
void add_bias_relu(std::span<float> rows, std::span<const float> bias) noexcept;

/// output = max(input, 0). The two may be the same memory.
void relu(std::span<const float> input, std::span<float> output) noexcept;

/// input_gradient = output_gradient where output > 0, and 0 elsewhere. The two may be the same memory.
void relu_backward(std::span<const float> output, std::span<const float> output_gradient,
                   std::span<float> input_gradient) noexcept;

/// The functions of the layers of the same names, and their derivatives: input_gradient = output_gradient
/// times the derivative, which tanh and sigmoid take from their output and GELU and SiLU from their input.
/// Good to some 1e-6 of the largest result. Gradients may be the same memory.
void tanh(std::span<const float> input, std::span<float> output) noexcept;
void tanh_backward(std::span<const float> output, std::span<const float> output_gradient,
                   std::span<float> input_gradient) noexcept;
void sigmoid(std::span<const float> input, std::span<float> output) noexcept;
void sigmoid_backward(std::span<const float> output, std::span<const float> output_gradient,
                      std::span<float> input_gradient) noexcept;
void gelu(std::span<const float> input, std::span<float> output) noexcept;
void gelu_backward(std::span<const float> input, std::span<const float> output_gradient,
                   std::span<float> input_gradient) noexcept;
void silu(std::span<const float> input, std::span<float> output) noexcept;
void silu_backward(std::span<const float> input, std::span<const float> output_gradient,
                   std::span<float> input_gradient) noexcept;

/// values = e^(values - shift); returns their sum, in 16 lanes and then a fixed tree.
float exp_and_sum(std::span<float> values, float shift) noexcept;

/// The largest of `values` (at least one); NaN if any is.
float largest(std::span<const float> values) noexcept;

/// target += source, element by element.
void add(std::span<const float> source, std::span<float> target) noexcept;

/// sums[j] = the sum of rows[i][j] over all i: four rows at a time, ((0 + 1) + (2 + 3)), from the first to
/// the last.
void column_sums(std::span<const float> rows, std::span<float> sums) noexcept;

/// output [columns, rows] = input [rows, columns], transposed.
void transpose(std::size_t rows, std::size_t columns, std::span<const float> input,
               std::span<float> output) noexcept;

/// Sum of term(0), term(1), ..., in 16 lanes (element i belongs to lane i mod 16), then in a fixed tree.
template <class Term>
float lane_sum(std::size_t count, Term&& term) {
  constexpr std::size_t kLanes = 16;
  float lanes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (std::size_t lane = 0; i + lane < count; ++lane) lanes[lane] += term(i + lane);
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

/// Sum of the squares of value(0), value(1), ..., value(count - 1) in double: 16 lanes (element i belongs to
/// lane i mod 16), then the lanes in a fixed tree.
template <class Value>
double sum_of_squares(std::size_t count, Value&& value) {
  constexpr std::size_t kLanes = 16;
  double lanes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const double x = value(i + lane);
      lanes[lane] += x * x;
    }
  }
  for (std::size_t lane = 0; i + lane < count; ++lane) {
    const double x = value(i + lane);
    lanes[lane] += x * x;
  }
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

double sum_of_squares(std::span<const float> values) noexcept;

}  // namespace lockstep
