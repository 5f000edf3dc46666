#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/error.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/hooks/feeds.hpp>
#include <lockstep/hooks/second_or_step_timer.hpp>
#include <lockstep/hooks/step_trace.hpp>
#include <lockstep/hooks/step_values.hpp>
#include <lockstep/hooks/summary_writer.hpp>
#include <lockstep/reduce/tally.hpp>
#include <lockstep/reduce/topology.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

class Coordinator;

/// All that a hook can reach of the session that calls it.
class RunContext {
 public:
  virtual ~RunContext() = default;

  virtual int rank() const = 0;
  virtual int ranks() const = 0;
  virtual const Topology& topology() const = 0;
  bool is_chief() const { return rank() == 0; }
  virtual State& state() = 0;
  virtual std::int64_t global_step() const = 0;
  virtual const Clock& clock() const = 0;
  virtual const Log& log() const = 0;  ///< speaks on the chief, is silent elsewhere

  /// Where summaries go: to the event file on the chief, nowhere on other ranks.
  virtual SummaryWriter& summary() = 0;

  /// In `begin` only: from now on `timer`, which must live as long as the session, triggers at the same step
  /// on all ranks. Logically collective for hooks of all ranks: same timers in the same order. Throws
  /// UsageError when there are more than kMaxTimers with an interval in seconds.
  virtual void agree_on(SecondOrStepTimer& timer) = 0;

  /// This rank asks to stop. Local. Said before or in a step, all stop after that step; said after it, after
  /// the next.
  virtual void request_stop(std::string_view reason) = 0;

  /// All ranks stop now, before another step. Logically collective: call it on every rank at the same step,
  /// from values that all ranks share. Throws UsageError in a hook of the chief alone.
  virtual void request_stop_all(std::string_view reason) = 0;
  virtual bool stop_requested() const = 0;

  /// This rank asks for a checkpoint after this step, or the next if this one is over. Local.
  virtual void save_now() = 0;

  /// In `before_run`: what this rank's step finds in StepContext::feeds(). Local.
  virtual Feeds& feeds() = 0;

  /// Records how this rank spends its time. Local.
  virtual StepTrace& trace() = 0;

  /// Brings a text of every rank to the chief, where `deliver` gets them in the order of the ranks: once all
  /// ranks have agreed how the next step, or the close, went; after an error never, nor after a step in which
  /// some rank ended before it was asked. Costs a message of its own, so it is for what happens now and then.
  /// Logically collective: call it on every rank at the same step, from values that all ranks share.
  using Deliver = std::function<void(const std::vector<std::string>& texts)>;
  virtual void gather(std::string text, Deliver deliver) = 0;

  /// For threads of hooks (lockstep/session/coordinator.hpp), from `after_create_session` on. Local.
  virtual Coordinator& coordinator() { throw UsageError("this context has no coordinator"); }
};

/// What a step has yielded, the same on all ranks.
class RunValues {
 public:
  RunValues(const StepValues& values, const Tally& tally, std::int64_t global_step)
      : values_(values), tally_(tally), global_step_(global_step) {}

  /// The step's named values, reduced over ranks.
  const StepValues& values() const { return values_; }
  const Tally& tally() const { return tally_; }

  /// After this step's update.
  std::int64_t global_step() const { return global_step_; }

 private:
  const StepValues& values_;
  const Tally& tally_;
  std::int64_t global_step_;
};

/// Something that happens around every step (tf.train.SessionRunHook).
///
/// Ranks: hooks given as `hooks` run on every rank, with the same list everywhere; `chief_only_hooks` on the
/// chief alone. No function of a hook may communicate: what ranks must agree on goes through the tally or
/// `request_*`. Threading: called only from the thread that runs the session.
///
/// Order: `begin` of all hooks; the state is initialized or restored; `after_create_session`; then per step
/// `before_run`, the step, `after_run`, each in the order of the list; at a clean end `end`. After an error
/// of any rank `on_error` instead of `end`, on all ranks. Hooks that look last (the saver) come after all
/// others in `after_run` and `end`, so that a checkpoint holds what the others made of its step.
class SessionRunHook {
 public:
  virtual ~SessionRunHook() = default;

  /// Short, lower-case, for logs: "stop_at_step".
  virtual std::string_view name() const = 0;

  /// With options; compared between ranks at start and printed. The same on all ranks.
  virtual std::string describe() const { return std::string(name()); }

  /// Before the state exists: the place to declare what the hook keeps, and for `agree_on`.
  virtual void begin(RunContext&) {}

  /// The state is ready, on all ranks with the same values.
  virtual void after_create_session(RunContext&) {}

  virtual void before_run(RunContext&) {}

  /// An exception here ends the run on all ranks, EndOfInput cleanly; the hooks behind this one are not
  /// called for this step, which counts all the same.
  virtual void after_run(RunContext&, const RunValues&) {}

  /// Clean ends only: stop, end of input.
  virtual void end(RunContext&) {}

  /// After an error, before it leaves the session. Must not throw.
  virtual void on_error(RunContext&, const std::exception&) {}

  /// True for a hook that decides or gathers for all ranks, and so must be on every rank.
  virtual bool needs_all_ranks() const { return false; }

  /// True for a hook that saves what `after_run` and `end` of others may still change.
  virtual bool looks_last() const { return false; }
};

}  // namespace lockstep
