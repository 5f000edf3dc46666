#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lockstep::simulated {

/// What a rank has asked MPI for, and has of memory.
struct Metered {
  std::int64_t sends = 0;
  std::int64_t receives = 0;
  std::int64_t sent_bytes = 0;
  std::int64_t collectives = 0;     ///< calls, of whatever kind
  std::int64_t gathered_bytes = 0;  ///< what collectives brought to this rank
  std::int64_t live_bytes = 0;      ///< of operator new and of shared memory
  std::int64_t peak_bytes = 0;      ///< since the last phase
};

/// Counts for all ranks of the process from now on: the calls of MPI through its profiling interface, and
/// operator new. SMPI's own work for collectives is not counted, its memory is.
void start_metering(int ranks);
void stop_metering() noexcept;

/// The calling rank has ended a phase: keeps what it has asked for so far.
void pass_phase(const std::string& phase);

/// Of each phase, in their order: that of each rank.
const std::vector<std::pair<std::string, std::vector<Metered>>>& metered();

}  // namespace lockstep::simulated
