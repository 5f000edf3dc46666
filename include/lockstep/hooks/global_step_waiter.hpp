#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <lockstep/base/files.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// A checkpoint that has been waited for.
struct AwaitedCheckpoint {
  std::int64_t step = 0;
  std::string name;  ///< base name of the file
};

struct GlobalStepWaiterOptions {
  std::int64_t wait_until_step = 0;
  double limit_secs = 7200;  ///< 0: no limit
  double poll_secs = 0.5;
  double notice_secs = 30;  ///< how often it is said what is missing
  std::string basename = std::string(kDefaultBasename);
};

/// Waits until another job has saved a step of at least `wait_until_step` in `directory`, and the file
/// verifies (what tf.train.GlobalStepWaiterHook is to a job that starts late: here a job has one step for all
/// its ranks, so it is other jobs, evaluators above all, that wait). Only reads; `directory` need not be
/// there yet.
///
/// Collective over `comm`: the chief looks, and says every `poll_secs` to the others whether to go on
/// waiting, so no other rank reads a clock or a file. Notices go to the log of the communicator's policy on
/// the chief, times come from its clock.
///
/// Returns the newest such checkpoint, on all ranks; nullopt at once, without looking, when `wait_until_step`
/// is 0 or below. Throws on all ranks: UsageError for an interval that is not above 0, DeadlineExceeded at
/// the limit, IoError when the directory is there and cannot be read.
std::optional<AwaitedCheckpoint> wait_for_global_step(const Communicator& comm, FileSystem& files,
                                                      const std::filesystem::path& directory,
                                                      const GlobalStepWaiterOptions& options);

}  // namespace lockstep
