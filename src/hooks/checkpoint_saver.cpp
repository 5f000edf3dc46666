#include <algorithm>
#include <cstddef>
#include <functional>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/checkpoint_saver.hpp>
#include <lockstep/mpi/fold_ranks.hpp>

namespace lockstep {

CheckpointSaverHook::CheckpointSaverHook(Options options)
    : options_(std::move(options)), timer_(options_.save_secs, options_.save_steps) {}

std::string CheckpointSaverHook::describe() const {
  std::string text = "checkpoint_saver " + timer_.describe();
  if (!options_.metric.empty()) text += ", with " + options_.metric;
  if (options_.stop_on_failure) text += ", stops when a save fails";
  return text;
}

void CheckpointSaverHook::attach(std::shared_ptr<Saver> saver, std::optional<std::int64_t> restored_step,
                                 std::optional<ShardedSaves> shards) {
  saver_ = std::move(saver);
  shards_ = std::move(shards);
  saves_ = 0;
  writing_shards_ = delayed_ = shards_failed_ = false;
  not_begun_.clear();
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
  created_step_ = context.global_step();
  if (saved_step_ != context.global_step()) save(context);
}

void CheckpointSaverHook::before_run(RunContext& context) {
  collect(context);
}

void CheckpointSaverHook::after_run(RunContext& context, const RunValues& values) {
  if (!options_.metric.empty()) note_metric(values);
  const std::int64_t step = values.global_step();
  if (is_due(step, values.tally())) {
    timer_.update_last_triggered_step(step);
    if (writing_shards_ && !delayed_) {
      context.log().warn(fmt::format("the save of step {} is still running; that of step {} waits for it",
                                     *saved_step_, step));
    }
    delayed_ = true;
  }
  if (!delayed_ || writing_shards_) return;
  delayed_ = false;
  if (saved_step_ != step) save(context);
}

bool CheckpointSaverHook::is_due(std::int64_t step, const Tally& tally) const {
  return tally.anyone_says(Says::save) || timer_.should_trigger_for_step(step);
}

bool CheckpointSaverHook::saves_after(std::int64_t step, const Tally& tally) const {
  return !writing_shards_ && (delayed_ || is_due(step, tally));
}

void CheckpointSaverHook::speak(Tally& ballot) const {
  if (!writing_shards_) return;
  if (shards_->writer && shards_->writer->pending()) {
    ballot.say(Says::shard_pending);
  } else if (!problem_here().empty()) {
    ballot.say(Says::shard_failed);
  }
}

void CheckpointSaverHook::hear(const Tally& tally) {
  // Ranks that close do not hear the same tallies as the others.
  if (!writing_shards_ || tally.anyone_says(Says::closing) || tally.anyone_says(Says::shard_pending)) return;
  std::string problem;
  if (tally.anyone_says(Says::shard_failed)) {
    const int who = tally.first_rank(Says::shard_failed);
    problem = fmt::format("rank {}: {}", who, shards_->comm.broadcast_text(problem_here(), who));
  }
  conclude(problem);
}

/// Not while this rank's shard is pending.
std::string CheckpointSaverHook::problem_here() const {
  if (!not_begun_.empty()) return not_begun_;
  return shards_->writer ? shards_->writer->problem() : "";
}

void CheckpointSaverHook::conclude(const std::string& problem) {
  writing_shards_ = false;
  if (problem.empty()) {
    if (shards_->writer) shards_->writer->hand_over();
    if (saver_) saver_->commit();
  } else {
    shards_failed_ = true;
    if (shards_->writer) shards_->writer->discard();
    if (saver_) saver_->abandon(problem);
  }
}

Digest CheckpointSaverHook::content_here(RunContext& context) const {
  if (context.is_chief()) return content_digest(context.state().entries());
  return shards_ && shards_->writer ? content_digest(shards_->writer->entries()) : Digest{};
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
  if (shards_ ? !shards_failed_ : saved_step_ == context.global_step() && !failure_) return;
  std::exception_ptr broken;
  try {
    save(context);
  } catch (...) {
    if (!shards_) throw;
    broken = std::current_exception();  // the other ranks wait for what comes of it
  }
  settle(context);
  if (broken) std::rethrow_exception(broken);
}

void CheckpointSaverHook::save(RunContext& context) {
  saved_step_ = context.global_step();
  const std::uint64_t nonce = shards_ ? shards_->first_save + saves_++ : 0;
  if (shards_) {
    writing_shards_ = true;
    shards_failed_ = false;
    not_begun_ = "its part did not begin";
  }
  if (saver_) {
    for (const auto& listener : options_.listeners) listener->before_save(context.global_step());
  }
  if (saver_ || (shards_ && shards_->writer)) {
    const auto phase = context.trace().phase("save");
    if (shards_ && shards_->writer) shards_->writer->start(context.global_step(), nonce);
    if (saver_) {
      failure_ = nullptr;
      if (saver_->start(context.global_step(), metric_, nonce)) ++running_;
    }
  }
  not_begun_.clear();
}

/// Waits for a save that is running; afterwards `failure_` is that of the newest save.
void CheckpointSaverHook::settle(RunContext& context) {
  if (shards_) {
    settle_shards(context);
  } else if (saver_) {
    wait(context);
  }
}

/// Collective, whatever goes wrong on one rank; and one that left the last step early, by EndOfInput, may not
/// even have begun what the others did.
void CheckpointSaverHook::settle_shards(RunContext& context) {
  struct Standing {
    std::uint64_t saves = 0;
    std::uint64_t writing = 0;
  };
  const Standing all = fold_ranks(
      shards_->comm, "all ranks to say which shards they write", Standing{saves_, writing_shards_ ? 1U : 0U},
      [](const Standing& left, const Standing& right) {
        return Standing{std::max(left.saves, right.saves), std::max(left.writing, right.writing)};
      });
  saves_ = all.saves;
  if (all.writing != 0) {
    if (!writing_shards_) not_begun_ = "its part did not begin";
    if (shards_->writer) shards_->writer->wait();
    std::string problem;
    const auto problems = shards_->comm.all_gather_text(problem_here());
    for (std::size_t rank = 0; rank < problems.size() && problem.empty(); ++rank) {
      if (!problems[rank].empty()) problem = fmt::format("rank {}: {}", rank, problems[rank]);
    }
    conclude(problem);
  }
  std::exception_ptr thrown;
  try {
    if (saver_) wait(context);
  } catch (...) {
    thrown = std::current_exception();
  }
  const bool failed = shards_failed_ || failure_ != nullptr || saved_step_ != context.global_step();
  shards_failed_ = fold_ranks(shards_->comm, "all ranks to say whether their shards are safe", failed,
                              std::logical_or<>());
  if (thrown) std::rethrow_exception(thrown);
}

void CheckpointSaverHook::wait(RunContext& context) {
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

void CheckpointSaverHook::tell_results(RunContext& context) {
  // Whether the shards of other ranks are durable is not known without them.
  if (!saver_ || shards_) return;
  try {
    wait(context);
  } catch (const std::exception& error) {
    context.log().error(error.what());
  }
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
      if (listener->after_save(result->step) && result->step != created_step_) {
        context.request_stop(
            fmt::format("a checkpoint listener asked for it after saving step {}", result->step));
      }
    }
  }
}

}  // namespace lockstep
