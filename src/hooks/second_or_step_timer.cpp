#include <cmath>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/second_or_step_timer.hpp>

namespace lockstep {

SecondOrStepTimer::SecondOrStepTimer(std::optional<double> every_secs,
                                     std::optional<std::int64_t> every_steps,
                                     std::shared_ptr<const Clock> clock)
    : every_secs_(every_secs), every_steps_(every_steps), clock_(std::move(clock)) {
  if (!every_secs && !every_steps)
    throw UsageError("a timer needs an interval in seconds or in steps; give one");
  if (every_secs && !(*every_secs > 0 && std::isfinite(*every_secs))) {
    throw UsageError(fmt::format("a timer's interval of {} s is not above 0", *every_secs));
  }
  if (every_steps && *every_steps <= 0) {
    throw UsageError(fmt::format("a timer's interval of {} steps is not above 0", *every_steps));
  }
}

bool SecondOrStepTimer::should_trigger_for_step(std::int64_t step) const {
  if (!last_step_) return true;
  if (step == *last_step_) return false;
  if (every_steps_ && step >= *last_step_ + *every_steps_) return true;
  if (!every_secs_) return false;
  return agreed_ ? *agreed_ : seconds_passed(clock_->now());
}

std::optional<SecondOrStepTimer::Elapsed> SecondOrStepTimer::update_last_triggered_step(std::int64_t step) {
  const Seconds now = clock_->now();
  std::optional<Elapsed> elapsed;
  if (last_step_) elapsed = Elapsed{now - last_time_, step - *last_step_};
  last_step_ = step;
  last_time_ = now;
  if (agreed_) agreed_ = false;  // what the tally said was of the time before this trigger
  return elapsed;
}

void SecondOrStepTimer::reset() noexcept {
  last_step_.reset();
  last_time_ = Seconds{0};
  if (agreed_) agreed_ = false;
}

std::string SecondOrStepTimer::describe() const {
  if (every_secs_ && every_steps_) return fmt::format("every {} steps or {} s", *every_steps_, *every_secs_);
  return every_steps_ ? fmt::format("every {} steps", *every_steps_)
                      : fmt::format("every {} s", *every_secs_);
}

}  // namespace lockstep
