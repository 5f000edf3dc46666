#include <algorithm>
#include <cerrno>
#include <cmath>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/state_file.hpp>
#include <lockstep/checkpoint/status_file.hpp>
#include <lockstep/hooks/global_step_waiter.hpp>

namespace lockstep {
namespace {

/// The chief's view of the directory.
class Lookout {
 public:
  Lookout(FileSystem& files, const std::filesystem::path& path, const GlobalStepWaiterOptions& options,
          const Log& log)
      : files_(files), path_(path), options_(options), log_(log) {}

  std::optional<AwaitedCheckpoint> look() {
    const auto directory = open();
    if (!directory) return std::nullopt;
    status_ = read_status(*directory);
    auto found = scan_checkpoints(*directory, options_.basename);
    newest_.reset();
    std::ranges::reverse(found);
    for (const FoundCheckpoint& candidate : found) {
      if (candidate.name.step < options_.wait_until_step) {
        newest_ = candidate.name.step;
        break;
      }
      if (!refused_.contains({candidate.file, candidate.bytes}) && verifies(*directory, candidate)) {
        return AwaitedCheckpoint{candidate.name.step, candidate.file};
      }
    }
    return std::nullopt;
  }

  /// What there is instead of the step.
  std::string instead() const {
    if (!there_) return "the directory is not there";
    return fmt::format(
        "{}{}", newest_ ? fmt::format("the newest is of step {}", *newest_) : "there is none",
        status_ ? fmt::format(", the training is {} at step {}", status_->state, status_->global_step) : "");
  }

 private:
  std::unique_ptr<Directory> open() {
    try {
      auto directory = files_.open_directory(path_);
      there_ = true;
      return directory;
    } catch (const FileError& error) {
      if (error.code() != ENOENT) throw;
      there_ = false;
      return nullptr;
    }
  }

  bool verifies(Directory& directory, const FoundCheckpoint& candidate) {
    try {
      const CheckpointFile file(directory, candidate.file);
      if (file.step() == candidate.name.step) return true;
      log_.warn(fmt::format("{} holds step {}: it was renamed", candidate.file, file.step()));
    } catch (const FileError& error) {
      if (error.code() == ENOENT) return false;  // its training has deleted it: there is a newer one
      log_.warn(error.what());
    } catch (const DataError& error) {
      log_.warn(error.what());
    }
    // Not read again every time: a good file of that name comes as another one.
    refused_.insert({candidate.file, candidate.bytes});
    return false;
  }

  FileSystem& files_;
  const std::filesystem::path& path_;
  const GlobalStepWaiterOptions& options_;
  const Log& log_;
  bool there_ = false;
  std::optional<RunStatus> status_;
  std::optional<std::int64_t> newest_;  ///< of those that are too old
  std::set<std::pair<std::string, std::uint64_t>> refused_;
};

void check(const GlobalStepWaiterOptions& options) {
  const auto positive = [](double seconds) { return seconds > 0 && std::isfinite(seconds); };
  if (!positive(options.poll_secs) || !positive(options.notice_secs) || !(options.limit_secs >= 0)) {
    throw UsageError(
        fmt::format("a wait for a step looks every {} s, speaks every {} s and ends after {} s; give "
                    "seconds above 0, or 0 for no limit",
                    options.poll_secs, options.notice_secs, options.limit_secs));
  }
}

}  // namespace

std::optional<AwaitedCheckpoint> wait_for_global_step(const Communicator& comm, FileSystem& files,
                                                      const std::filesystem::path& directory,
                                                      const GlobalStepWaiterOptions& options) {
  check(options);
  if (options.wait_until_step <= 0) return std::nullopt;
  const WaitPolicy& policy = comm.policy();
  Clock& clock = *policy.clock;
  Lookout lookout(files, directory, options, policy.log);
  const Seconds begin = clock.now();
  Seconds told = begin;
  std::optional<AwaitedCheckpoint> found;
  for (bool first = true;; first = false) {
    on_chief(comm, "the chief to look for a checkpoint", [&] {
      Seconds pause{options.poll_secs};
      if (options.limit_secs > 0) {
        pause = std::clamp(begin + Seconds{options.limit_secs} - clock.now(), Seconds{0}, pause);
      }
      if (!first) clock.sleep(pause);
      found = lookout.look();
      if (found) return;
      const Seconds now = clock.now();
      const auto waited = [&] {
        return fmt::format("checkpoint of step {} or later in '{}' after {:.0f} s: {}",
                           options.wait_until_step, directory.string(), (now - begin).count(),
                           lookout.instead());
      };
      if (options.limit_secs > 0 && now - begin >= Seconds{options.limit_secs}) {
        throw DeadlineExceeded(
            fmt::format("no {}; look whether the training runs, or wait longer", waited()));
      }
      if (first || now - told >= Seconds{options.notice_secs}) {
        policy.log.info("waiting: no " + waited());
        told = now;
      }
    });
    std::int64_t step = found ? found->step : -1;
    comm.broadcast_values(std::span(&step, 1));
    if (step < 0) continue;
    return AwaitedCheckpoint{step, comm.broadcast_text(found ? found->name : "")};
  }
}

}  // namespace lockstep
