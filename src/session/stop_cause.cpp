#include <fmt/format.h>

#include <lockstep/session/stop_cause.hpp>

namespace lockstep {

std::string to_string(const StopCause& cause) {
  if (cause.by.empty()) return cause.reason;
  return cause.rank == StopCause::kAll
             ? fmt::format("{} (asked by {})", cause.reason, cause.by)
             : fmt::format("{} (asked by {} on rank {})", cause.reason, cause.by, cause.rank);
}

}  // namespace lockstep
