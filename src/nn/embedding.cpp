#include <algorithm>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/embedding.hpp>

namespace lockstep {
namespace {

constexpr float kDeviation = 0.02F;

}  // namespace

Embedding::Embedding(std::int64_t entries, std::int64_t features, bool positions)
    : entries_(entries), features_(features), with_positions_(positions) {
  // Beyond this, not every whole number is a float.
  constexpr std::int64_t kMost = std::int64_t{1} << 24;
  if (entries < 1 || entries > kMost || features < 1) {
    throw UsageError(fmt::format("an embedding has 1 to {} entries of at least 1 feature (got {} of {})",
                                 kMost, entries, features));
  }
}

std::string Embedding::describe() const {
  return fmt::format("embedding {} -> {}{}", entries_, features_,
                     with_positions_ ? fmt::format(", {} positions", positions_) : "");
}

Shape Embedding::declare(State& state, const std::string& name, const Shape& input) {
  if (input.size() != 1) {
    throw UsageError(fmt::format("an embedding takes samples of one dimension (got {})", to_string(input)));
  }
  positions_ = static_cast<std::size_t>(input[0]);
  weight_ = state.parameter(name + "/weight", {entries_, features_});
  if (with_positions_) position_ = state.parameter(name + "/position", {input[0], features_});
  return {input[0], features_};
}

void Embedding::initialize(const State& state, std::uint64_t seed) const {
  fill_normal(state, weight_, seed, kDeviation);
  if (with_positions_) fill_normal(state, position_, seed, kDeviation);
}

void Embedding::forward(const Pass&, std::span<const float> input, std::span<float> output,
                        std::span<float>) const {
  const auto features = static_cast<std::size_t>(features_);
  for (std::size_t i = 0; i < input.size(); ++i) {
    const float number = input[i];
    if (!(number >= 0 && number < static_cast<float>(entries_)) ||
        number != static_cast<float>(static_cast<std::int64_t>(number))) {
      throw DataError(
          fmt::format("input {} is {}, no whole number from 0 to {}; check the data set, or give "
                      "the embedding more entries",
                      i, number, entries_ - 1));
    }
    const std::span<float> to = output.subspan(i * features, features);
    const auto row = static_cast<std::size_t>(number) * features;
    std::ranges::copy(weight_.values().subspan(row, features), to.begin());
    if (with_positions_) add(position_.values().subspan(i % positions_ * features, features), to);
  }
}

void Embedding::backward(const Pass&, std::span<const float> input, std::span<const float>,
                         std::span<float> output_gradient, std::span<float> input_gradient,
                         std::span<float> gradients, std::span<float>) const {
  const auto features = static_cast<std::size_t>(features_);
  const std::span<float> weights = weight_.in(gradients);
  std::ranges::fill(weights, 0.0F);
  std::span<float> positions;
  if (with_positions_) {
    positions = position_.in(gradients);
    std::ranges::fill(positions, 0.0F);
  }
  for (std::size_t i = 0; i < input.size(); ++i) {
    const std::span<const float> from = output_gradient.subspan(i * features, features);
    add(from, weights.subspan(static_cast<std::size_t>(input[i]) * features, features));
    if (with_positions_) add(from, positions.subspan(i % positions_ * features, features));
  }
  std::ranges::fill(input_gradient, 0.0F);
}

}  // namespace lockstep
