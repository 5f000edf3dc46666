#pragma once

#include <span>
#include <vector>

namespace lockstep {

/// The middle value; of an even number of values the mean of both. NaN for none.
double median(std::vector<double> values);

/// A figure and its 95 % interval. Without one (a single sample), both ends are NaN.
struct Estimate {
  double value = 0;
  double low = 0;
  double high = 0;
};

/// Medians of as many values drawn with replacement, 1,000 times; empty for fewer than two values. The draws
/// follow from `seed` alone.
std::vector<double> bootstrap_medians(std::span<const double> values, unsigned seed);

/// `value` with what lies between the 2.5th and the 97.5th percentile of `bootstrapped`.
Estimate with_interval(double value, std::vector<double> bootstrapped);

/// The median with its interval by bootstrap.
Estimate estimate_median(std::span<const double> values, unsigned seed);

/// The median of `of` over that of `to`, with the same kind of interval; both are drawn anew.
Estimate estimate_ratio(std::span<const double> of, std::span<const double> to, unsigned seed);

}  // namespace lockstep
