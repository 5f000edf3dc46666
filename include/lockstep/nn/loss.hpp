#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <lockstep/state/tensor.hpp>

namespace lockstep {

/// What a model should have said: a class for each sample, or values.
struct Targets {
  Targets(std::span<const std::int32_t> labels_) : labels(labels_) {}  // implicit on purpose
  Targets(std::span<const float> values_) : values(values_) {}

  std::span<const std::int32_t> labels;
  std::span<const float> values;
};

/// What one micro-batch adds to the loss, and how many of its samples the model got right.
struct Score {
  double loss_sum = 0;
  std::int64_t correct = 0;
  std::int64_t judged = 0;  ///< predictions that could have been correct: one a sample, or one a position
};

/// Compares a model's outputs with the targets. Const and thread-safe; allocates nothing unless it throws.
class Loss {
 public:
  virtual ~Loss() = default;
  virtual std::string describe() const = 0;

  /// Throws UsageError if outputs of this shape cannot be judged.
  virtual void check(const Shape& output) const = 0;

  /// Sums the loss over the samples, in their order. If `gradient` is not empty it gets `scale` times the
  /// derivative of that sum with respect to `outputs`. NaN in any output makes the sum NaN, and such a sample
  /// counts as wrong. Throws DataError for a target that cannot be.
  virtual Score evaluate(std::int64_t samples, std::span<const float> outputs, const Targets& targets,
                         float scale, std::span<float> gradient) const = 0;
};

}  // namespace lockstep
