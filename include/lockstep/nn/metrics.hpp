#pragma once

#include <cstdint>
#include <span>

namespace lockstep {

/// How many of some predictions are right. Sums of whole numbers: ranks may add theirs in any order.
struct ClassificationSums {
  std::int64_t judged = 0;
  std::int64_t correct = 0;  ///< the label has the largest output (the first of equal ones counts)
  std::int64_t correct_top_k =
      0;  ///< fewer than k outputs are larger than the label's, or equal and before it

  double accuracy() const noexcept;        ///< NaN for no predictions
  double top_k_accuracy() const noexcept;  ///< likewise
};

/// Judges outputs [labels.size(), classes]. An output of NaN makes its prediction wrong. Throws UsageError
/// for k below 1 and sizes that do not fit, DataError for a label outside 0..classes-1.
ClassificationSums judge_classes(std::span<const float> outputs, std::span<const std::int32_t> labels,
                                 std::int64_t k = 5);

/// How far predicted values are from the true ones. Sums in double, in the order of the values; add those of
/// several pieces in one order for the same bits.
struct RegressionSums {
  std::int64_t count = 0;
  double squared_errors = 0;
  double absolute_errors = 0;
  double targets = 0;
  double squared_targets = 0;

  double rmse() const noexcept;  ///< root of the mean squared error; NaN for no values
  double mae() const noexcept;   ///< mean absolute error

  /// 1 - (squared errors) / (squared distances of the targets from their mean), the share of the targets'
  /// variance that is explained. Not finite when all targets are equal.
  double r_squared() const noexcept;

  RegressionSums& operator+=(const RegressionSums& other) noexcept;
};

/// Throws UsageError unless there is a target for each output.
RegressionSums judge_values(std::span<const float> outputs, std::span<const float> targets);

}  // namespace lockstep
