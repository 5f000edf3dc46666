#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/dropout.hpp>

namespace lockstep {

Dropout::Dropout(float rate) : rate_(rate) {
  if (!(rate >= 0 && rate < 1)) {
    throw UsageError(fmt::format("a dropout rate is from 0 to below 1 (got {})", rate));
  }
}

std::string Dropout::describe() const {
  return fmt::format("dropout {}", rate_);
}

Shape Dropout::declare(State&, const std::string& name, const Shape& input) {
  elements_ = static_cast<std::size_t>(element_count(input));
  if (elements_ > std::numeric_limits<std::uint32_t>::max()) {
    throw UsageError(
        fmt::format("a dropout layer takes samples of less than 2^32 elements (got {})", to_string(input)));
  }
  own_seed_ = 14695981039346656037U;  // FNV-1a
  for (const char c : name) own_seed_ = (own_seed_ ^ static_cast<unsigned char>(c)) * 1099511628211U;
  return input;
}

std::size_t Dropout::scratch_size(std::int64_t samples) const {
  return elements_ * static_cast<std::size_t>(samples);
}

void Dropout::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                      std::span<float> scratch) const {
  if (!pass.training || rate_ == 0) {
    std::ranges::copy(input, output.begin());
    return;
  }
  const float kept = 1.0F / (1.0F - rate_);
  for (std::size_t sample = 0; sample < static_cast<std::size_t>(pass.samples); ++sample) {
    const std::span<float> factors = scratch.subspan(sample * elements_, elements_);
    Random(pass.draw.seed ^ own_seed_, Purpose::dropout, static_cast<std::uint32_t>(pass.draw.step),
           static_cast<std::uint32_t>(pass.draw.first_sample) + static_cast<std::uint32_t>(sample))
        .fill_uniform(factors);
    const float* from = input.data() + sample * elements_;
    float* to = output.data() + sample * elements_;
    for (std::size_t i = 0; i < elements_; ++i) {
      factors[i] = factors[i] < rate_ ? 0.0F : kept;
      to[i] = from[i] * factors[i];
    }
  }
}

void Dropout::backward(const Pass&, std::span<const float>, std::span<const float>,
                       std::span<float> output_gradient, std::span<float> input_gradient, std::span<float>,
                       std::span<float> scratch) const {
  for (std::size_t i = 0; i < input_gradient.size(); ++i) {
    input_gradient[i] = rate_ == 0 ? output_gradient[i] : output_gradient[i] * scratch[i];
  }
}

}  // namespace lockstep
