#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/checkpoint_saver.hpp>

namespace lockstep {

CheckpointSaverHook::CheckpointSaverHook(Options options)
    : options_(std::move(options)), timer_(options_.save_secs, options_.save_steps) {}

std::string CheckpointSaverHook::describe() const {
  std::string text = "checkpoint_saver " + timer_.describe();
  if (!options_.metric.empty()) text += ", with " + options_.metric;
  if (options_.stop_on_failure) text += ", stops when a save fails";
  return text;
}

void CheckpointSaverHook::attach(std::shared_ptr<Saver> saver, std::optional<std::int64_t> restored_step) {
  saver_ = std::move(saver);
  saved_step_ = restored_step;
  metric_ = {};
  failure_ = nullptr;
  running_ = 0;
}

void CheckpointSaverHook::begin(RunContext& context) {
  context.agree_on(timer_);
  if (context.is_chief()) {
    for (const auto& listener : options_.listeners) listener->begin();
  }
}

void CheckpointSaverHook::after_create_session(RunContext& context) {
  timer_.update_last_triggered_step(context.global_step());
  if (saved_step_ != context.global_step()) save(context);
}

void CheckpointSaverHook::before_run(RunContext& context) {
  collect(context);
}

void CheckpointSaverHook::after_run(RunContext& context, const RunValues& values) {
  if (!options_.metric.empty()) note_metric(values);
  if (!saves_after(values.global_step(), values.tally())) return;
  timer_.update_last_triggered_step(values.global_step());
  if (saved_step_ != values.global_step()) save(context);
}

bool CheckpointSaverHook::saves_after(std::int64_t step, const Tally& tally) const {
  return tally.anyone_says(Says::save) || timer_.should_trigger_for_step(step);
}

void CheckpointSaverHook::note_metric(const RunValues& values) {
  const auto value = values.values().find(options_.metric);
  if (!value) {
    throw UsageError(fmt::format(
        "the best checkpoints are to be kept by '{}', and step {} has no value of this name; its step must "
        "return it",
        options_.metric, values.global_step()));
  }
  metric_ = {options_.metric, *value};
}

void CheckpointSaverHook::end(RunContext& context) {
  save_and_wait(context);
  if (!saver_) return;
  for (const auto& listener : options_.listeners) listener->end(context.global_step());
  if (failure_) std::rethrow_exception(failure_);
}

void CheckpointSaverHook::save_and_wait(RunContext& context) {
  settle(context);
  if (saved_step_ == context.global_step() && !failure_) return;
  save(context);
  settle(context);
}

void CheckpointSaverHook::save(RunContext& context) {
  saved_step_ = context.global_step();
  if (!saver_) return;
  for (const auto& listener : options_.listeners) listener->before_save(context.global_step());
  const auto phase = context.trace().phase("save");
  failure_ = nullptr;
  if (saver_->start(context.global_step(), metric_)) ++running_;
}

/// Waits for a save that is running; afterwards `failure_` is that of the newest save.
void CheckpointSaverHook::settle(RunContext& context) {
  if (!saver_) return;
  collect(context);
  // What has ended is collected, and one at most is running: a failure that is thrown is that one's.
  try {
    saver_->wait();
  } catch (const Error&) {
    failure_ = std::current_exception();
    running_ = 0;
  }
  collect(context);
}

void CheckpointSaverHook::collect(RunContext& context) {
  while (running_ > 0) {
    const auto result = saver_->take_result();
    if (!result) return;
    --running_;
    failure_ = result->error;
    if (!result->ok()) {
      if (options_.stop_on_failure) throw IoError(result->message);
      continue;  // the saver has said so; the next interval tries again
    }
    context.summary().checkpoint_saved(result->name, result->step);
    for (const auto& listener : options_.listeners) {
      if (listener->after_save(result->step)) {
        context.request_stop(
            fmt::format("a checkpoint listener asked for it after saving step {}", result->step));
      }
    }
  }
}

}  // namespace lockstep
