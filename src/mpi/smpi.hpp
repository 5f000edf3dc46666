#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include <mpi.h>

#include <lockstep/mpi/transport.hpp>

namespace lockstep {

/// Where MPI is SimGrid's SMPI (meson setup -Dmpi=smpi): all ranks live in one process, each on a stack of
/// its own; time is simulated, and passes only in calls of MPI and in `pass_simulated_time`. SMPI's
/// non-blocking collectives are a message to each rank, so the transport uses the blocking ones.
#if defined(LOCKSTEP_SMPI)

inline constexpr bool kRanksAreSimulated = true;

/// One turn of a wait. Turns grow with the wait, so that a long one has few: it ends at most 3 % late. Local.
void pass_simulated_time(std::uint64_t turn);

/// Memory that the ranks of a node see, as all of the process do. Collective over `comm`.
std::unique_ptr<SharedMemory> share_in_process(MPI_Comm comm, int rank, int size, std::size_t bytes);

#else

inline constexpr bool kRanksAreSimulated = false;
inline void pass_simulated_time(std::uint64_t) {}
inline std::unique_ptr<SharedMemory> share_in_process(MPI_Comm, int, int, std::size_t) {
  return nullptr;
}

#endif

}  // namespace lockstep
