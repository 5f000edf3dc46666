#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/stop_at_step.hpp>

namespace lockstep {

StopAtStepHook::StopAtStepHook(std::optional<std::int64_t> num_steps, std::optional<std::int64_t> last_step)
    : num_steps_(num_steps), last_step_(last_step) {
  if (num_steps.has_value() == last_step.has_value()) {
    throw UsageError("StopAtStepHook takes exactly one of num_steps and last_step");
  }
  if (num_steps.value_or(last_step.value_or(0)) < 0) {
    throw UsageError(fmt::format("StopAtStepHook cannot stop at {} steps; give 0 or more",
                                 num_steps.value_or(last_step.value_or(0))));
  }
}

std::string StopAtStepHook::describe() const {
  // What was asked for, not the step it became: that is known only later.
  return num_steps_ ? fmt::format("stop_at_step after {} steps", *num_steps_)
                    : fmt::format("stop_at_step {}", *last_step_);
}

void StopAtStepHook::after_create_session(RunContext& context) {
  // Once in the object's life: a session that is created again does not extend it.
  if (!last_step_) last_step_ = context.global_step() + *num_steps_;
  stop_if_reached(context, context.global_step());
}

void StopAtStepHook::after_run(RunContext& context, const RunValues& values) {
  stop_if_reached(context, values.global_step());
}

void StopAtStepHook::stop_if_reached(RunContext& context, std::int64_t step) const {
  if (step >= *last_step_) context.request_stop_all(fmt::format("reached step {}", *last_step_));
}

}  // namespace lockstep
