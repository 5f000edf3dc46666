#include <algorithm>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/softmax.hpp>

namespace lockstep {

Shape Softmax::declare(State&, const std::string&, const Shape& input) {
  if (input.empty()) throw UsageError("a softmax layer needs an input of at least one dimension");
  features_ = static_cast<std::size_t>(input.back());
  return input;
}

void Softmax::forward(const Pass&, std::span<const float> input, std::span<float> output,
                      std::span<float>) const {
  for (std::size_t begin = 0; begin < output.size(); begin += features_) {
    const std::span<float> row = output.subspan(begin, features_);
    std::ranges::copy(input.subspan(begin, features_), row.begin());
    const float share = 1.0F / exp_and_sum(row, largest(row));
    for (float& value : row) value *= share;
  }
}

void Softmax::backward(const Pass&, std::span<const float>, std::span<const float> output,
                       std::span<float> output_gradient, std::span<float> input_gradient, std::span<float>,
                       std::span<float>) const {
  if (input_gradient.empty()) return;
  for (std::size_t begin = 0; begin < output.size(); begin += features_) {
    const float* y = output.data() + begin;
    const float* g = output_gradient.data() + begin;
    float* to = input_gradient.data() + begin;
    float dot = 0;
    for (std::size_t j = 0; j < features_; ++j) dot += y[j] * g[j];
    for (std::size_t j = 0; j < features_; ++j) to[j] = y[j] * (g[j] - dot);
  }
}

}  // namespace lockstep
