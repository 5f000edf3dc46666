#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/schedule.hpp>

namespace lockstep {

namespace {

void check_rate(float rate, std::string_view what = "learning_rate") {
  if (!std::isfinite(rate) || rate < 0.0F) {
    throw UsageError(fmt::format("{} must be a finite number of at least 0 (got {})", what, rate));
  }
}

void check_steps(std::int64_t steps, std::string_view what) {
  if (steps < 1) throw UsageError(fmt::format("{} must be at least 1 (got {})", what, steps));
}

/// 1 at the start, 0 at the end of half a cosine.
double half_cosine(double fraction) {
  return 0.5 * (1 + std::cos(std::numbers::pi * std::clamp(fraction, 0.0, 1.0)));
}

double between(double fraction_of_first, double first, double last) {
  return last + fraction_of_first * (first - last);
}

}  // namespace

ConstantRate::ConstantRate(float rate) : rate_(rate) {
  check_rate(rate);
}

float ConstantRate::learning_rate(std::int64_t) const {
  return rate_;
}

std::string ConstantRate::describe() const {
  return fmt::format("constant {}", rate_);
}

StepDecay::StepDecay(float rate, std::int64_t every, double factor)
    : rate_(rate), every_(every), factor_(factor) {
  check_rate(rate);
  check_steps(every, "the steps between two decays");
  if (!(factor >= 0 && factor <= 1)) {
    throw UsageError(fmt::format("decay_factor must be from 0 to 1 (got {})", factor));
  }
}

float StepDecay::learning_rate(std::int64_t step) const {
  return static_cast<float>(static_cast<double>(rate_) *
                            std::pow(factor_, static_cast<double>(step / every_)));
}

std::string StepDecay::describe() const {
  return fmt::format("step {} times {} every {} steps", rate_, factor_, every_);
}

ExponentialDecay::ExponentialDecay(float rate, std::int64_t every, double factor)
    : rate_(rate), every_(every), factor_(factor) {
  check_rate(rate);
  check_steps(every, "the steps of a decay");
  if (!(factor > 0 && factor <= 1)) {
    throw UsageError(fmt::format("decay_factor must be above 0 and at most 1 (got {})", factor));
  }
}

float ExponentialDecay::learning_rate(std::int64_t step) const {
  return static_cast<float>(static_cast<double>(rate_) *
                            std::pow(factor_, static_cast<double>(step) / static_cast<double>(every_)));
}

std::string ExponentialDecay::describe() const {
  return fmt::format("exponential {} times {} in {} steps", rate_, factor_, every_);
}

CosineDecay::CosineDecay(float rate, std::int64_t steps, float end) : rate_(rate), steps_(steps), end_(end) {
  check_rate(rate);
  check_rate(end, "end_learning_rate");
  check_steps(steps, "the steps of the schedule");
}

float CosineDecay::learning_rate(std::int64_t step) const {
  const double fraction = static_cast<double>(step) / static_cast<double>(steps_);
  return static_cast<float>(
      between(half_cosine(fraction), static_cast<double>(rate_), static_cast<double>(end_)));
}

std::string CosineDecay::describe() const {
  return fmt::format("cosine {} to {} in {} steps", rate_, end_, steps_);
}

PolynomialDecay::PolynomialDecay(float rate, std::int64_t steps, double power, float end)
    : rate_(rate), steps_(steps), power_(power), end_(end) {
  check_rate(rate);
  check_rate(end, "end_learning_rate");
  check_steps(steps, "the steps of the schedule");
  if (!(power > 0) || !std::isfinite(power)) {
    throw UsageError(fmt::format("decay_power must be above 0 (got {})", power));
  }
}

float PolynomialDecay::learning_rate(std::int64_t step) const {
  const double left = std::max(0.0, 1 - static_cast<double>(step) / static_cast<double>(steps_));
  return static_cast<float>(
      between(std::pow(left, power_), static_cast<double>(rate_), static_cast<double>(end_)));
}

std::string PolynomialDecay::describe() const {
  return fmt::format("polynomial {} to {} in {} steps, power {}", rate_, end_, steps_, power_);
}

OneCycle::OneCycle(float rate, std::int64_t steps) : rate_(rate), steps_(steps) {
  check_rate(rate);
  check_steps(steps, "the steps of the schedule");
}

float OneCycle::learning_rate(std::int64_t step) const {
  constexpr double kRise = 0.3;
  const auto rate = static_cast<double>(rate_);
  const double fraction = static_cast<double>(step) / static_cast<double>(steps_);
  const double value = fraction < kRise
                           ? between(half_cosine(fraction / kRise), rate / 25, rate)
                           : between(half_cosine((fraction - kRise) / (1 - kRise)), rate, rate / 250'000);
  return static_cast<float>(value);
}

std::string OneCycle::describe() const {
  return fmt::format("one-cycle {} in {} steps", rate_, steps_);
}

float scaled_rate(float rate, BatchScaling scaling, std::int64_t global_batch, std::int64_t base_batch) {
  check_steps(global_batch, "global_batch");
  check_steps(base_batch, "base_batch");
  const double ratio = static_cast<double>(global_batch) / static_cast<double>(base_batch);
  switch (scaling) {
    case BatchScaling::linear:
      return static_cast<float>(static_cast<double>(rate) * ratio);
    case BatchScaling::square_root:
      return static_cast<float>(static_cast<double>(rate) * std::sqrt(ratio));
    case BatchScaling::none:
      break;
  }
  return rate;
}

WarmUp::WarmUp(std::int64_t steps, std::unique_ptr<Schedule> then) : steps_(steps), then_(std::move(then)) {
  if (steps < 0) throw UsageError(fmt::format("warmup_steps must be at least 0 (got {})", steps));
}

float WarmUp::learning_rate(std::int64_t step) const {
  const float rate = then_->learning_rate(step);
  if (step >= steps_) return rate;
  return static_cast<float>(static_cast<double>(rate) * static_cast<double>(step + 1) /
                            static_cast<double>(steps_));
}

std::string WarmUp::describe() const {
  return steps_ == 0 ? then_->describe() : fmt::format("{}, warm-up {} steps", then_->describe(), steps_);
}

}  // namespace lockstep
