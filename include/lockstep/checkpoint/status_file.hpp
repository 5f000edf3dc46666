#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <lockstep/base/files.hpp>

namespace lockstep {

/// The contents of status.json: what a run is doing, or how it ended, for scripts that cannot trust exit
/// codes. "running" without a living owner of the directory means that the job was lost: launch it again.
struct RunStatus {
  std::string state;  ///< "running", "done", "stopped" (launch again to go on) or "failed"
  std::optional<int> exit_code;
  std::string reason;
  std::int64_t global_step = 0;
  std::int64_t restarts = 0;  ///< launches in a row before this one that were stopped or lost
  std::int64_t pid = 0;
  std::string host;
  std::string job;
  double updated = 0;  ///< seconds since 1970

  friend bool operator==(const RunStatus&, const RunStatus&) = default;
};

/// Whether a launch that finds this goes on with a run that was stopped or lost: one more restart.
bool goes_on(const RunStatus& before) noexcept;

/// nullopt when there is none, or none that can be understood. Local; any process may. Throws nothing.
std::optional<RunStatus> read_status(Directory& directory) noexcept;

/// Replaces it, durably. Chief only. Throws FileError.
void write_status(Directory& directory, const RunStatus& status);

}  // namespace lockstep
