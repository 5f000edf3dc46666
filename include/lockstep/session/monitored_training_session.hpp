#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include <lockstep/session/monitored_session.hpp>
#include <lockstep/session/scaffold.hpp>
#include <lockstep/session/session_config.hpp>

namespace lockstep {

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

  double stop_grace_period_secs = 120;     ///< see MonitoredSessionOptions
  double max_wait_secs = 7200;             ///< how long the creation waits for other ranks; 0: no limit
  std::filesystem::path summary_dir = {};  ///< empty: checkpoint_dir
  SessionConfig config = {};
};

/// A MonitoredSession with the hooks that training usually has (tf.train.MonitoredTrainingSession), in this
/// order: chief-only hooks; StepCounterHook and SummarySaverHook, where there is a directory for summaries;
/// CheckpointSaverHook, where there is one for checkpoints; the user's. Their functions are called in this
/// order, but that the final save comes last.
///
/// It locks and probes the directory, restores the newest good checkpoint or initializes, and brings all
/// ranks to the same state; freezes `state` if nobody did. `state` must outlive it.
///
/// Collective over `comm`. Same on all ranks: all options but the chief-only
/// hooks, what was declared in `state`, and the program. Nobody compares functions.
///
/// Throws on all ranks: UsageError for options that make no sense; EnvironmentError when ranks differ in
/// hooks, options, program or the layout of the state, when the directory is in use, or when its checkpoint
/// is of another model; DataError when there are checkpoints and none is good; IoError when the directory
/// cannot take what must be saved; DeadlineExceeded when ranks are missing.
class MonitoredTrainingSession final : public MonitoredSession {
 public:
  MonitoredTrainingSession(Communicator comm, State& state, MonitoredTrainingSessionOptions options = {});

 private:
  MonitoredTrainingSession(const std::shared_ptr<SessionCreator>& creator,
                           const MonitoredTrainingSessionOptions& options);
};

}  // namespace lockstep
