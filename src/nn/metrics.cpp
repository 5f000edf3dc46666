#include <cmath>
#include <cstddef>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/metrics.hpp>

namespace lockstep {

double ClassificationSums::accuracy() const noexcept {
  return static_cast<double>(correct) / static_cast<double>(judged);
}

double ClassificationSums::top_k_accuracy() const noexcept {
  return static_cast<double>(correct_top_k) / static_cast<double>(judged);
}

ClassificationSums judge_classes(std::span<const float> outputs, std::span<const std::int32_t> labels,
                                 std::int64_t k) {
  if (k < 1) throw UsageError(fmt::format("top-k accuracy needs a k of at least 1 (got {})", k));
  ClassificationSums sums;
  if (labels.empty() && outputs.empty()) return sums;
  if (labels.empty() || outputs.size() % labels.size() != 0 || outputs.empty()) {
    throw UsageError(fmt::format("{} outputs were given for {} labels", outputs.size(), labels.size()));
  }
  const std::size_t classes = outputs.size() / labels.size();
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < 0 || static_cast<std::size_t>(labels[i]) >= classes) {
      throw DataError(fmt::format("label {} of prediction {} is outside 0..{}; check the data set", labels[i],
                                  i, classes - 1));
    }
    const auto label = static_cast<std::size_t>(labels[i]);
    const std::span<const float> row = outputs.subspan(i * classes, classes);
    std::int64_t ahead = 0;
    bool known = true;
    for (std::size_t j = 0; j < classes; ++j) {
      known = known && !std::isnan(row[j]);
      if (row[j] > row[label] || (row[j] == row[label] && j < label)) ++ahead;
    }
    ++sums.judged;
    if (known && ahead < 1) ++sums.correct;
    if (known && ahead < k) ++sums.correct_top_k;
  }
  return sums;
}

double RegressionSums::rmse() const noexcept {
  return std::sqrt(squared_errors / static_cast<double>(count));
}

double RegressionSums::mae() const noexcept {
  return absolute_errors / static_cast<double>(count);
}

double RegressionSums::r_squared() const noexcept {
  const double spread = squared_targets - targets * targets / static_cast<double>(count);
  return 1.0 - squared_errors / spread;
}

RegressionSums& RegressionSums::operator+=(const RegressionSums& other) noexcept {
  count += other.count;
  squared_errors += other.squared_errors;
  absolute_errors += other.absolute_errors;
  targets += other.targets;
  squared_targets += other.squared_targets;
  return *this;
}

RegressionSums judge_values(std::span<const float> outputs, std::span<const float> targets) {
  if (outputs.size() != targets.size()) {
    throw UsageError(fmt::format("{} outputs were given for {} targets", outputs.size(), targets.size()));
  }
  RegressionSums sums;
  sums.count = static_cast<std::int64_t>(outputs.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const auto target = static_cast<double>(targets[i]);
    const double error = static_cast<double>(outputs[i]) - target;
    sums.squared_errors += error * error;
    sums.absolute_errors += std::abs(error);
    sums.targets += target;
    sums.squared_targets += target * target;
  }
  return sums;
}

}  // namespace lockstep
