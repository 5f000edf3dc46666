#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/base/signals.hpp>
#include <lockstep/hooks/session_run_hook.hpp>
#include <lockstep/mpi/communicator.hpp>
#include <lockstep/session/scaffold.hpp>
#include <lockstep/session/step_context.hpp>

namespace lockstep {

/// How a session sums, shares and what it stands on. The seams have real defaults; tests pass others.
struct SessionConfig {
  ReductionKind reduction = ReductionKind::canonical;
  std::int64_t micro_batches = 0;  ///< a step; 0: one a rank
  bool share_parameters = false;   ///< one copy a node, of which each rank updates its slice
  int ranks_per_node = 0;          ///< above 0: pretend that nodes are that small (tests)

  double max_run_secs = 0;  ///< stop with a save when the session is this old; 0: off
  bool stop_on_save_failure = false;

  bool fresh = false;                       ///< set existing checkpoints aside and begin anew
  std::string restore_from = {};            ///< base name of the checkpoint to go on from; empty: the newest
  std::set<std::string> allow_change = {};  ///< settings that may differ from the checkpoint's
  std::string steal = {};                   ///< job id of a holder of the directory that may be pushed out
  std::string identity = {};                ///< what else must be equal on all ranks (version, options)

  std::shared_ptr<FileSystem> files = std::make_shared<PosixFileSystem>();
  std::shared_ptr<Clock> clock = std::make_shared<SystemClock>();
  std::shared_ptr<Executor> executor = std::make_shared<ThreadExecutor>();
  std::shared_ptr<Signals> signals = std::make_shared<NoSignals>();
  std::shared_ptr<ProcessIdentity> process = std::make_shared<SystemIdentity>();
  Log log = {};  ///< the chief's; silent by default
};

struct MonitoredTrainingSessionOptions {
  std::filesystem::path checkpoint_dir = {};  ///< empty: no restore, no default saver
  Scaffold scaffold = {};
  std::vector<std::shared_ptr<SessionRunHook>> hooks = {};             ///< on every rank, the same list
  std::vector<std::shared_ptr<SessionRunHook>> chief_only_hooks = {};  ///< used on the chief alone

  // Intervals: nullopt or 0 is off, both given: whichever comes first, below 0: UsageError.
  std::optional<double> save_checkpoint_secs = 600;
  std::optional<std::int64_t> save_checkpoint_steps = std::nullopt;
  std::optional<std::int64_t> save_summaries_steps = 100;
  std::optional<double> save_summaries_secs = std::nullopt;
  std::optional<std::int64_t> log_step_count_steps = 100;

  double stop_grace_period_secs = 120;     ///< for threads of the user; no effect yet
  double max_wait_secs = 7200;             ///< how long the creation waits for other ranks; 0: no limit
  std::filesystem::path summary_dir = {};  ///< empty: checkpoint_dir
  SessionConfig config = {};
};

/// Trains in steps, the same on all ranks (tf.train.MonitoredTrainingSession). The chief, rank 0, initializes
/// or restores the state, saves and writes summaries; all ranks run every step together.
///
///     created -> running -> stopping -> closed
///                   \__________________/
///                     (an error of any rank: closed, thrown on all)
///
/// One thread uses it. `state` must outlive it. Every function is collective over `comm` unless it says
/// otherwise. Errors, unless noted, are thrown on all ranks with the same text, which names the rank where
/// one other than the chief failed. An exception whose type is not of this library keeps type and text on the
/// rank that threw it; the others throw TrainingError with its text.
///
/// What a rank throws after its step has reduced, the others hear of in their next step or in close: a
/// program that lets its ranks communicate between steps must do that in a hook or in the step.
class MonitoredTrainingSession {
 public:
  using Step = std::function<StepValues(StepContext&)>;

  /// Locks and probes the directory, restores the newest good checkpoint or initializes, and brings all ranks
  /// to the same state; freezes `state` if nobody did. Ranks wait for the chief at most `max_wait_secs`.
  ///
  /// Throws UsageError for options that make no sense; EnvironmentError when ranks differ in hooks, options
  /// or the layout of the state, when the directory is in use, or when its checkpoint is of another model;
  /// DataError when there are checkpoints and none is good; IoError when the directory cannot take what must
  /// be saved; DeadlineExceeded when ranks are missing.
  MonitoredTrainingSession(Communicator comm, State& state, MonitoredTrainingSessionOptions options = {});

  /// Closes, but never throws; while an exception unwinds it only reports.
  ~MonitoredTrainingSession();
  MonitoredTrainingSession(const MonitoredTrainingSession&) = delete;
  MonitoredTrainingSession& operator=(const MonitoredTrainingSession&) = delete;

  /// Local; the same on all ranks between steps.
  bool should_stop() const noexcept;

  /// One step with all hooks. Not after should_stop() (UsageError). An exception of `step` or of a hook on
  /// any rank is thrown on all; the session is then over. `feeds`: what this rank's step is to find in
  /// StepContext::feeds(), beside what hooks feed.
  void run(const Step& step, const Feeds& feeds = {});

  /// Runs `step` until something asks to stop, then closes.
  void train(const Step& step);

  /// Ends the hooks, saves, and lets the chief leave last. May be called again.
  void close();

  /// This rank asks to stop: all do after the next step that is run. Local.
  void request_stop(std::string_view reason);

  /// This rank asks for a checkpoint after the next step. Local.
  void save_now();

  /// Where summaries of the user go; does nothing on ranks that are not the chief. Local.
  SummaryWriter& summary() noexcept;

  std::int64_t global_step() const noexcept;        ///< Local; the same on all ranks between steps.
  const std::string& stop_reason() const noexcept;  ///< Local; the same on all ranks; empty while running.
  bool stopped_early() const noexcept;  ///< Local. By signal or time limit: launch again to go on.
  const std::string& restored_from() const noexcept;  ///< Local. Base name of a checkpoint, or empty.
  const Reducer& reducer() const noexcept;            ///< Local.
  const Topology& topology() const noexcept;          ///< Local.

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep
