#include <utility>

#include <lockstep/hooks/summary_saver.hpp>

namespace lockstep {

SummarySaverHook::SummarySaverHook(std::optional<std::int64_t> save_steps, std::optional<double> save_secs,
                                   Write write)
    : timer_(save_secs, save_steps), write_(std::move(write)) {}

void SummarySaverHook::begin(RunContext& context) {
  context.agree_on(timer_);
}

void SummarySaverHook::after_run(RunContext& context, const RunValues& values) {
  const std::int64_t step = values.global_step();
  if (!timer_.should_trigger_for_step(step)) return;
  timer_.update_last_triggered_step(step);
  SummaryWriter& summary = context.summary();
  if (!summary.active()) return;
  if (first_) summary.session_start(step);
  first_ = false;
  for (const auto& value : values.values().all()) summary.scalar(value.name, value.value, step);
  if (write_) write_(summary, context.state(), step);
}

void SummarySaverHook::end(RunContext& context) {
  context.summary().flush();
}

void SummarySaverHook::on_error(RunContext& context, const std::exception&) {
  context.summary().flush();
}

}  // namespace lockstep
