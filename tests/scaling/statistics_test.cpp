#include <cmath>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/random.hpp>
#include <lockstep/scaling/statistics.hpp>

namespace lockstep {

TEST_CASE("the median is the middle, or the mean of the two in the middle") {
  CHECK(median({3}) == 3);
  CHECK(median({5, 1, 3}) == 3);
  CHECK(median({4, 1, 3, 2}) == 2.5);
  CHECK(std::isnan(median({})));
}

TEST_CASE("one value has no interval, equal values have one of no width") {
  const Estimate one = estimate_median(std::vector{2.0}, 1);
  CHECK(one.value == 2);
  CHECK(std::isnan(one.low));
  CHECK(std::isnan(one.high));
  const Estimate same = estimate_median(std::vector(7, 2.0), 1);
  CHECK(same.low == 2);
  CHECK(same.high == 2);
  const Estimate ratio = estimate_ratio(std::vector(7, 3.0), std::vector(5, 2.0), 1);
  CHECK(ratio.value == 1.5);
  CHECK(ratio.low == 1.5);
  CHECK(ratio.high == 1.5);
}

TEST_CASE("intervals of 95 % hold the truth about that often") {
  // Medians of 15 normal numbers, whose median is 10; ratios to others, whose median is 5.
  constexpr std::uint32_t kTrials = 400;
  constexpr std::uint32_t kValues = 15;
  int median_held = 0;
  int ratio_held = 0;
  for (std::uint32_t trial = 0; trial < kTrials; ++trial) {
    const Random random(trial, Purpose::test);
    std::vector<double> values;
    std::vector<double> others;
    for (std::uint32_t i = 0; i < kValues; ++i) {
      values.push_back(10 + static_cast<double>(random.normal(2 * i)));
      others.push_back(5 + 0.5 * static_cast<double>(random.normal(2 * i + 1)));
    }
    const Estimate e = estimate_median(values, trial);
    CHECK(e.low <= e.value);
    CHECK(e.value <= e.high);
    if (e.low <= 10 && 10 <= e.high) ++median_held;
    const Estimate r = estimate_ratio(values, others, trial);
    if (r.low <= 2 && 2 <= r.high) ++ratio_held;
  }
  CAPTURE(median_held);
  CAPTURE(ratio_held);
  CHECK(median_held > static_cast<int>(0.91 * kTrials));
  CHECK(ratio_held > static_cast<int>(0.91 * kTrials));
  CHECK(median_held < static_cast<int>(kTrials));
  CHECK(ratio_held < static_cast<int>(kTrials));
}

TEST_CASE("the same values and seed give the same interval") {
  const std::vector<double> values{1, 2, 3, 5, 8, 13, 21};
  const Estimate first = estimate_median(values, 7);
  const Estimate again = estimate_median(values, 7);
  CHECK(first.low == again.low);
  CHECK(first.high == again.high);
  CHECK(first.low < first.high);
}

}  // namespace lockstep
