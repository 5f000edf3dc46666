#include <cmath>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/schedule.hpp>

namespace lockstep {

ConstantRate::ConstantRate(float rate) : rate_(rate) {
  if (!std::isfinite(rate) || rate < 0.0F) {
    throw UsageError(fmt::format("learning_rate must be a finite number of at least 0 (got {})", rate));
  }
}

float ConstantRate::learning_rate(std::int64_t) const {
  return rate_;
}

std::string ConstantRate::describe() const {
  return fmt::format("constant {}", rate_);
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
