#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include <lockstep/base/error.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/checkpoint/lock.hpp>
#include <lockstep/checkpoint/status_file.hpp>
#include <lockstep/session/session_config.hpp>

namespace lockstep {

/// The checkpoint directory while a session owns it: its lock, and what it says of the run. Chief only.
class RunDirectory {
 public:
  /// Makes and locks the directory. `key`: with which it is signed, if it is. Throws IoError, and
  /// EnvironmentError when another job has it.
  RunDirectory(const std::filesystem::path& path, SessionConfig& config, const Log& log,
               std::shared_ptr<const MacKey> key);

  const std::shared_ptr<Directory>& directory() const noexcept { return directory_; }
  std::uint64_t token() const noexcept { return lock_->token(); }
  const std::string& nonce() const noexcept { return lock_->holder().nonce; }

  /// A status that cannot be written is a warning. A launch that is refused before it has begun leaves that
  /// of a run which is done as it is. `code`: null where the run begins.
  void write_status(const char* state, std::optional<ExitCode> code, const std::string& reason,
                    std::int64_t global_step);

 private:
  SessionConfig& config_;
  Log log_;
  std::shared_ptr<Directory> directory_;
  std::unique_ptr<DirectoryLock> lock_;
  std::optional<RunStatus> before_;  ///< what was found, until this run begins
  std::int64_t restarts_ = 0;
};

}  // namespace lockstep
