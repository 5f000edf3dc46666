#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include <lockstep/base/clock.hpp>
#include <lockstep/mpi/communicator.hpp>
#include <lockstep/session/session_config.hpp>

namespace lockstep::simulated {

/// A training of which everything is real but the gradients, which a counter-based generator makes.
struct JobOptions {
  std::size_t elements = 4096;        ///< parameters
  std::int64_t micro_batches = 1024;  ///< a step, over all ranks; 0: one for each rank
  std::int64_t steps = 8;             ///< half of them before a checkpoint, half after its restore
  double micro_batch_seconds = 0;     ///< what is charged for each; below 0: what the generator took
  double jitter = 0;                  ///< standard deviation of that, as a share of it
  std::filesystem::path directory;    ///< for checkpoints; empty: none, and all steps in one session
  bool digest = true;                 ///< make gradients; false: they are all zero
  std::size_t bucket_bytes = 0;
  int ranks_per_node = 0;  ///< see SessionConfig
};

/// Where the job meets what is measured.
struct JobSeams {
  std::shared_ptr<Clock> clock;
  std::shared_ptr<Executor> executor;
  std::function<void(Seconds)> charge;            ///< the calling rank computes for so long
  std::function<Seconds()> processor_time;        ///< of the calling thread
  std::function<void(const char* phase)> passed;  ///< the calling rank has ended a phase
};

/// Mean seconds a step, as a report of lockstep-train has them.
struct JobParts {
  double begin = 0;      ///< waited for the others to have read the last sum
  double compute = 0;    ///< as charged
  double reduce = 0;     ///< waits and messages
  double finish = 0;     ///< waited for the end of the update
  double wait = 0;       ///< of `reduce`, for others and their messages
  double wait_last = 0;  ///< of `reduce`, of the rank that came last: for messages alone
};

struct JobResult {
  std::string digest;       ///< of the parameters at the end
  std::string reducer;      ///< what it says of itself
  double step_seconds = 0;  ///< mean over all steps but the first of each session
  JobParts parts;           ///< of those steps
};

/// Phases: "begin", "created", "first step", "steps", "closed", and the same with " again" for the second
/// session. Collective.
JobResult run_job(const Communicator& world, const JobOptions& options, const JobSeams& seams);

/// Words of the command line: --elements N --micro_batches N --steps N --micro_batch_us T|measured
/// --jitter SHARE --directory D --zeros --bucket_bytes N. Returns the number of words that `words` begins
/// with and that were understood: 0, 1 or 2.
int parse_word(int count, char** words, JobOptions& options);

}  // namespace lockstep::simulated
