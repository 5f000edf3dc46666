#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/base/signals.hpp>
#include <lockstep/reduce/reducer.hpp>

namespace lockstep {

class Keepsake;

/// How a session sums, shares and what it stands on. The seams have real defaults; tests pass others.
struct SessionConfig {
  ReductionKind reduction = ReductionKind::canonical;
  std::int64_t micro_batches = 0;  ///< in a step, over all ranks; 0: one for each rank
  bool share_parameters = false;   ///< one copy a node, of which each rank updates its slice
  bool shard_optimizer = false;    ///< every rank of every node keeps and updates its own part of the slots;
                                   ///< needs shared parameters and the canonical sum
  GradientDtype gradient_dtype = GradientDtype::f32;  ///< between nodes; bf16 makes the bits depend on how
                                                      ///< ranks sit on nodes, and needs shared parameters
  std::size_t bucket_bytes = 0;  ///< of what is sent at once between nodes; 0: measured. Changes no bit
  int ranks_per_node = 0;        ///< above 0: pretend that nodes are that small (tests)

  double max_run_secs = 0;              ///< leave with a save before the session is this old; 0: off
  std::optional<double> end_time = {};  ///< or before this time, in seconds since 1970; the chief's counts
  double time_margin_secs = 0;          ///< to spare, beyond what saves and steps take (see TimeLimit)
  bool stop_on_save_failure = false;
  int max_recoveries = 10;  ///< after AbortedError, without a step that was completed in between

  bool fresh = false;                       ///< set existing checkpoints aside and begin anew
  std::string restore_from = {};            ///< base name of the checkpoint to go on from; empty: the newest
  std::set<std::string> allow_change = {};  ///< settings that may differ from the checkpoint's
  std::string steal = {};                   ///< job id of a holder of the directory that may be pushed out
  std::shared_ptr<Keepsake> keepsake = {};  ///< of the session before, and for the next; null: none
  std::string identity = {};                ///< what else must be equal on all ranks (version, options)

  std::shared_ptr<FileSystem> files = std::make_shared<PosixFileSystem>();
  std::shared_ptr<Clock> clock = std::make_shared<SystemClock>();
  std::shared_ptr<Executor> executor = std::make_shared<ThreadExecutor>();
  std::shared_ptr<Signals> signals = std::make_shared<NoSignals>();
  std::shared_ptr<ProcessIdentity> process = std::make_shared<SystemIdentity>();
  Log log = {};  ///< the chief's; silent by default
};

}  // namespace lockstep
