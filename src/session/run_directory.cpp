#include "run_directory.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <lockstep/checkpoint/status_file.hpp>
#include <lockstep/session/keepsake.hpp>

namespace lockstep {

RunDirectory::RunDirectory(const std::filesystem::path& path, SessionConfig& config, const Log& log,
                           std::shared_ptr<const MacKey> key)
    : config_(config), log_(log) {
  try {
    directory_ = config.files->create_directory(path);
  } catch (const FileError& error) {
    throw IoError(
        fmt::format("{}; choose a directory that the chief can write with --checkpoint_dir. Nothing has been "
                    "trained yet",
                    error.what()));
  }
  lock_ = std::make_unique<DirectoryLock>(directory_, *config.clock, *config.executor, log, *config.process,
                                          LockOptions{.steal = config.steal,
                                                      .gone = config.keepsake ? config.keepsake->owner() : "",
                                                      .key = std::move(key)});
  before_ = read_status(*directory_);
  if (before_ && goes_on(*before_)) restarts_ = before_->restarts + 1;
}

void RunDirectory::write_status(const char* state, std::optional<ExitCode> code, const std::string& reason,
                                std::int64_t global_step) {
  if (!code) before_.reset();  // this run has begun
  if (before_) {
    // A run that is finished stays so, though a launch with other options is refused.
    const bool refused = code == ExitCode::usage || code == ExitCode::environment;
    if (refused && before_->state == "done") return;
    // What failed may not have restored anything yet.
    global_step = std::max(global_step, before_->global_step);
  }
  try {
    lockstep::write_status(*directory_,
                           {.state = state,
                            .exit_code = code ? std::optional(static_cast<int>(*code)) : std::nullopt,
                            .reason = reason,
                            .global_step = global_step,
                            .restarts = restarts_,
                            .pid = config_.process->pid(),
                            .host = config_.process->host(),
                            .job = config_.process->job_id(),
                            .updated = config_.clock->wall_seconds()});
  } catch (const FileError& error) {
    log_.warn(fmt::format("{}; scripts that read status.json will see the state before", error.what()));
  }
}

}  // namespace lockstep
