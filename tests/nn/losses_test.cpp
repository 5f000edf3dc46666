#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/binary_cross_entropy.hpp>
#include <lockstep/nn/huber.hpp>
#include <lockstep/nn/mean_absolute_error.hpp>
#include <lockstep/nn/mean_squared_error.hpp>
#include <lockstep/nn/metrics.hpp>
#include <lockstep/nn/softmax_cross_entropy.hpp>

#include "support.hpp"

namespace lockstep {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Every slope of the loss against central differences in double. Kinks must lie further than `step` away.
void check_slopes(const Loss& loss, std::int64_t samples, std::vector<float> outputs,
                  const Targets& targets) {
  CAPTURE(loss.describe());
  CAPTURE(samples);
  std::vector<float> gradient(outputs.size());
  const Score score = loss.evaluate(samples, outputs, targets, 0.5F, gradient);
  CHECK(loss.evaluate(samples, outputs, targets, 1.0F, {}).loss_sum == doctest::Approx(score.loss_sum));
  constexpr float kStep = 1.0F / 256;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const float here = outputs[i];
    outputs[i] = here + kStep;
    const double up = static_cast<double>(outputs[i]);
    const double above = loss.evaluate(samples, outputs, targets, 1.0F, {}).loss_sum;
    outputs[i] = here - kStep;
    const double below = loss.evaluate(samples, outputs, targets, 1.0F, {}).loss_sum;
    const double slope = (above - below) / (up - static_cast<double>(outputs[i]));
    outputs[i] = here;
    CHECK(static_cast<double>(gradient[i]) == doctest::Approx(0.5 * slope).epsilon(1e-3).scale(1e-3));
  }
}

std::vector<float> targets_away_from(const std::vector<float>& outputs) {
  std::vector<float> targets(outputs.size());
  for (std::size_t i = 0; i < targets.size(); ++i) {
    targets[i] = outputs[i] + (i % 2 == 0 ? 0.4F : -1.7F) * (1.0F + static_cast<float>(i % 3));
  }
  return targets;
}

TEST_CASE("the slopes of every loss agree with differences for ragged shapes") {
  for (const std::int64_t samples : {1, 3, 8}) {
    for (const std::size_t each : {1, 5, 17}) {
      const auto outputs = test::normal_values(static_cast<std::size_t>(samples) * each, 1);
      const auto targets = targets_away_from(outputs);
      const Targets values{std::span<const float>(targets)};
      check_slopes(MeanSquaredError{}, samples, outputs, values);
      check_slopes(MeanAbsoluteError{}, samples, outputs, values);
      check_slopes(Huber{}, samples, outputs, values);
      check_slopes(Huber{0.6F}, samples, outputs, values);
      std::vector<float> shares(outputs.size());
      for (std::size_t i = 0; i < shares.size(); ++i) shares[i] = static_cast<float>(i % 5) / 4.0F;
      check_slopes(BinaryCrossEntropy{}, samples, outputs, std::span<const float>(shares));
    }
    for (const std::uint32_t classes : {2U, 10U, 40U}) {
      for (const std::size_t positions : {1, 3}) {
        const std::size_t rows = static_cast<std::size_t>(samples) * positions;
        const auto labels = test::random_labels(rows, classes, 2);
        const Targets wanted{std::span<const std::int32_t>(labels)};
        const auto logits = test::normal_values(rows * classes, 3);
        check_slopes(SoftmaxCrossEntropy{}, samples, logits, wanted);
        check_slopes(SoftmaxCrossEntropy{0.1F}, samples, logits, wanted);
      }
    }
  }
}

TEST_CASE("losses have the values that their formulas say") {
  const std::vector<float> outputs{1, 2, -1, 0.5F};
  const std::vector<float> targets{0, 0, 0, 0};
  const Targets values{std::span<const float>(targets)};
  CHECK(MeanSquaredError{}.evaluate(2, outputs, values, 1, {}).loss_sum == doctest::Approx(2.5 + 0.625));
  CHECK(MeanAbsoluteError{}.evaluate(2, outputs, values, 1, {}).loss_sum == doctest::Approx(1.5 + 0.75));
  CHECK(Huber{}.evaluate(2, outputs, values, 1, {}).loss_sum == doctest::Approx(1.0 + 0.3125));
  CHECK(BinaryCrossEntropy{}.evaluate(4, outputs, values, 1, {}).loss_sum ==
        doctest::Approx(1.313262 + 2.126928 + 0.313262 + 0.974077));
  // -log softmax of equal logits is log 4, and smoothing then changes nothing.
  const std::vector<float> equal(8, 3.0F);
  const std::vector<std::int32_t> labels{1, 3};
  const Targets wanted{std::span<const std::int32_t>(labels)};
  CHECK(SoftmaxCrossEntropy{}.evaluate(2, equal, wanted, 1, {}).loss_sum ==
        doctest::Approx(2 * std::log(4.0)));
  CHECK(SoftmaxCrossEntropy{0.3F}.evaluate(2, equal, wanted, 1, {}).loss_sum ==
        doctest::Approx(2 * std::log(4.0)));
  // Two positions of one sample: their mean. 0.9 of the label's, 0.1 / 4 of each.
  CHECK(SoftmaxCrossEntropy{}.evaluate(1, equal, wanted, 1, {}).loss_sum == doctest::Approx(std::log(4.0)));
  const std::vector<float> logits{2, 0, 0, 0};
  const std::vector<std::int32_t> first{0};
  const double log_sum = std::log(std::exp(2.0) + 3);
  CHECK(SoftmaxCrossEntropy{0.1F}.evaluate(1, logits, std::span<const std::int32_t>(first), 1, {}).loss_sum ==
        doctest::Approx(0.9 * (log_sum - 2) + 0.025 * (4 * log_sum - 2)));
}

TEST_CASE("a class is correct where its logit is the first of the largest ones") {
  const std::vector<float> logits{1, 4, 4, 2, 4};
  for (std::int32_t label = 0; label < 5; ++label) {
    CAPTURE(label);
    const Targets wanted{std::span<const std::int32_t>(&label, 1)};
    CHECK(SoftmaxCrossEntropy{}.evaluate(1, logits, wanted, 1, {}).correct == (label == 1 ? 1 : 0));
  }
}

TEST_CASE("a huge logit overflows no loss, and NaN reaches every loss") {
  const std::vector<float> huge{1e30F, -1e30F};
  const std::vector<float> right{1, 0};
  const Targets values{std::span<const float>(right)};
  CHECK(BinaryCrossEntropy{}.evaluate(1, huge, values, 1, {}).loss_sum == 0);
  const std::vector<float> nan{0, kNan};
  std::vector<float> gradient(2);
  const std::vector<std::int32_t> labels{0};
  const auto is_nan = [&](const Loss& loss, const Targets& targets) {
    const Score score = loss.evaluate(1, nan, targets, 1, gradient);
    CHECK(std::isnan(score.loss_sum));
    CHECK(std::isnan(gradient[1]));
    CHECK(score.correct == 0);
  };
  is_nan(MeanSquaredError{}, values);
  is_nan(MeanAbsoluteError{}, values);
  is_nan(Huber{}, values);
  is_nan(BinaryCrossEntropy{}, values);
  is_nan(SoftmaxCrossEntropy{}, std::span<const std::int32_t>(labels));
}

TEST_CASE("targets that cannot be are refused") {
  const std::vector<float> outputs(6), few(5), out_of_range(6, 1.5F);
  const std::vector<std::int32_t> labels{0, 1, 0, 1};
  CHECK_THROWS_AS(MeanSquaredError{}.evaluate(2, outputs, std::span<const float>(few), 1, {}), UsageError);
  CHECK_THROWS_AS(BinaryCrossEntropy{}.evaluate(2, outputs, std::span<const float>(out_of_range), 1, {}),
                  DataError);
  CHECK_THROWS_AS(SoftmaxCrossEntropy{}.evaluate(2, outputs, std::span<const std::int32_t>(labels), 1, {}),
                  UsageError);
  CHECK_THROWS_AS(SoftmaxCrossEntropy{1.0F}, UsageError);
  CHECK_THROWS_AS(Huber{0.0F}, UsageError);
}

TEST_CASE("accuracy and top-k count what they say, ties and NaN included") {
  const std::vector<float> outputs{3,    2, 1, 0,   // label 0: first
                                   3,    2, 1, 0,   // label 2: third
                                   1,    1, 1, 1,   // label 1: second of equal ones
                                   kNan, 9, 0, 0};  // label 1: unknown
  const std::vector<std::int32_t> labels{0, 2, 1, 1};
  CHECK(judge_classes(outputs, labels, 1).correct_top_k == 1);
  CHECK(judge_classes(outputs, labels, 2).correct_top_k == 2);
  const ClassificationSums sums = judge_classes(outputs, labels, 3);
  CHECK(sums.correct_top_k == 3);
  CHECK(sums.accuracy() == 0.25);
  CHECK(sums.top_k_accuracy() == 0.75);
  CHECK_THROWS_AS(judge_classes(outputs, labels, 0), UsageError);
  CHECK_THROWS_AS(judge_classes(outputs, std::vector<std::int32_t>{0, 1, 4, 0}, 1), DataError);
  CHECK_THROWS_AS(judge_classes(outputs, std::vector<std::int32_t>{0, 1, 2}, 1), UsageError);
}

TEST_CASE("RMSE, MAE and R squared are those of the whole, from its pieces too") {
  const std::vector<float> outputs{1, 2, 3, 5}, targets{1, 2, 4, 3};
  RegressionSums sums = judge_values(std::span(outputs).first(1), std::span(targets).first(1));
  sums += judge_values(std::span(outputs).subspan(1), std::span(targets).subspan(1));
  CHECK(sums.rmse() == doctest::Approx(std::sqrt(5.0 / 4)));
  CHECK(sums.mae() == doctest::Approx(0.75));
  CHECK(sums.r_squared() == doctest::Approx(1 - 5.0 / 5.0));
  CHECK(judge_values(targets, targets).r_squared() == 1);
  CHECK_THROWS_AS(judge_values(outputs, std::span(targets).first(3)), UsageError);
}

}  // namespace
}  // namespace lockstep
