#pragma once

#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// A row of a trained table for each input, which is a whole number from 0 to entries - 1 (a token): samples
/// [positions] become [positions, features]. With `positions`, a second table adds a row for each place of
/// the sample. Parameters: "weight" [entries, features] and "position" [positions, features], normal with a
/// deviation of 0.02 at first.
///
/// An input outside the table throws DataError.
class Embedding final : public Layer {
 public:
  explicit Embedding(std::int64_t entries, std::int64_t features, bool positions = false);

  std::string_view kind() const noexcept override { return "embedding"; }
  std::string describe() const override;
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  void initialize(const State& state, std::uint64_t seed) const override;
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;

  /// The inputs are numbers of rows and have no gradient: `input_gradient` gets zeros.
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 private:
  std::int64_t entries_;
  std::int64_t features_;
  bool with_positions_;
  std::size_t positions_ = 0;
  Tensor weight_;
  Tensor position_;
};

}  // namespace lockstep
