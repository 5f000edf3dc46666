#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include <lockstep/base/random.hpp>
#include <lockstep/scaling/statistics.hpp>

namespace lockstep {
namespace {

constexpr std::uint32_t kResamples = 1000;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Changes the order of `values`.
double middle_of(std::span<double> values) {
  if (values.empty()) return kNaN;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

}  // namespace

double median(std::vector<double> values) {
  return middle_of(values);
}

std::vector<double> bootstrap_medians(std::span<const double> values, unsigned seed) {
  if (values.size() < 2) return {};
  constexpr std::uint32_t kThisUse = 0x5ca1e;
  std::vector<double> drawn(values.size());
  std::vector<double> medians(kResamples);
  for (std::uint32_t r = 0; r < kResamples; ++r) {
    std::array<std::uint32_t, 4> bits{};
    for (std::size_t i = 0; i < drawn.size(); ++i) {
      if (i % 4 == 0) bits = philox({static_cast<std::uint32_t>(i / 4), r, 0, 0}, {seed, kThisUse});
      drawn[i] = values[static_cast<std::size_t>(std::uint64_t{bits[i % 4]} * values.size() >> 32)];
    }
    medians[r] = middle_of(drawn);
  }
  return medians;
}

Estimate with_interval(double value, std::vector<double> bootstrapped) {
  if (bootstrapped.empty()) return {value, kNaN, kNaN};
  std::ranges::sort(bootstrapped);
  const auto at = [&](double share) {
    const auto last = static_cast<double>(bootstrapped.size() - 1);
    return bootstrapped[static_cast<std::size_t>(std::lround(share * last))];
  };
  return {value, at(0.025), at(0.975)};
}

Estimate estimate_median(std::span<const double> values, unsigned seed) {
  return with_interval(median({values.begin(), values.end()}), bootstrap_medians(values, seed));
}

Estimate estimate_ratio(std::span<const double> of, std::span<const double> to, unsigned seed) {
  const double value = median({of.begin(), of.end()}) / median({to.begin(), to.end()});
  std::vector<double> ratios = bootstrap_medians(of, seed);
  const std::vector<double> below = bootstrap_medians(to, seed + 1);
  if (ratios.empty() || below.empty()) return with_interval(value, {});
  for (std::size_t i = 0; i < ratios.size(); ++i) ratios[i] /= below[i];
  return with_interval(value, std::move(ratios));
}

}  // namespace lockstep
