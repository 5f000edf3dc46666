#include <fmt/format.h>

#include <lockstep/hooks/step_counter.hpp>

namespace lockstep {

StepCounterHook::StepCounterHook(std::optional<std::int64_t> every_n_steps,
                                 std::optional<double> every_n_secs)
    : timer_(every_n_secs, every_n_steps) {}

void StepCounterHook::begin(RunContext& context) {
  context.agree_on(timer_);
}

void StepCounterHook::after_run(RunContext& context, const RunValues& values) {
  constexpr int kWarnings = 5;
  const std::int64_t step = values.global_step();
  if (context.is_chief()) lag_.add(step, values.tally());
  if (step == previous_ && warnings_ < kWarnings) {
    ++warnings_;
    context.log().warn(fmt::format(
        "the global step did not move ({}): intervals in steps do not come, and nothing new is saved", step));
  }
  previous_ = step;
  if (!timer_.should_trigger_for_step(step)) return;
  const auto elapsed = timer_.update_last_triggered_step(step);
  if (!elapsed || elapsed->seconds.count() <= 0) return;
  const double rate = static_cast<double>(elapsed->steps) / elapsed->seconds.count();
  context.summary().scalar("global_step/sec", rate, step);
  if (context.ranks() > 1) context.summary().scalar("arrival_lag/sec", lag_.mean(), step);
  if (context.is_chief() && !context.log().interactive()) {
    const std::string late = lag_.report(elapsed->seconds, context.topology());
    context.log().info(
        fmt::format("step {}: global_step/sec = {:.4g}{}{}", step, rate, late.empty() ? "" : "; ", late));
  }
  lag_.clear();
}

}  // namespace lockstep
