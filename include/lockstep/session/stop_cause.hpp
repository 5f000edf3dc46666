#pragma once

#include <cstdint>
#include <string>

namespace lockstep {

/// Why a session stops; the same on all ranks. Empty texts while it runs.
struct StopCause {
  std::string reason;  ///< "reached step 500"
  std::string by;      ///< who asked: the name of a hook, "the step", "the program", "a thread", "a signal"
  int rank = kAll;     ///< on which rank
  std::int64_t step = 0;  ///< the global step when all heard of it
  bool early = false;     ///< a signal or the time limit: launch again to go on

  static constexpr int kAll = -1;  ///< no rank alone: all decided it from what they share
};

/// "reached step 500 (asked by stop_at_step)".
std::string to_string(const StopCause& cause);

}  // namespace lockstep
