#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>

#include <mpi.h>

#include <lockstep/mpi/transport.hpp>

namespace lockstep {

/// Where MPI is SimGrid's SMPI (meson setup -Dmpi=smpi): all ranks live in one process, each on a stack of
/// its own; time is simulated, and passes only where a rank waits or says that it computes. SMPI's
/// non-blocking collectives are a message to each rank, so the transport uses the blocking ones.
#if defined(LOCKSTEP_SMPI)

inline constexpr bool kRanksAreSimulated = true;

/// How the waits of one communicator pass simulated time. All local.
class SimulatedWaits {
 public:
  /// Makes `request` of a started operation.
  Request begin(MPI_Request operation);

  /// Transport::test.
  bool test(Request& request);

  /// One turn of a wait. Where requests were tested in vain, until one of them is done. Else the wait is for
  /// what another rank writes into shared memory, and is a sleep; those grow with the wait, so that a long
  /// one has few turns: it ends at most 3 % late.
  void relax(std::uint64_t turn);

 private:
  std::uint64_t begun_ = 0;
  std::map<std::uint64_t, MPI_Request> tested_;  ///< by number: and not done
  std::set<std::uint64_t> done_;                 ///< and not tested since
};

/// Memory that the ranks of a node see, as all of the process do. Collective over `comm`.
std::unique_ptr<SharedMemory> share_in_process(MPI_Comm comm, int rank, int size, std::size_t bytes);

#else

inline constexpr bool kRanksAreSimulated = false;
class SimulatedWaits {
 public:
  static Request begin(MPI_Request) { return {}; }
  static bool test(Request&) { return true; }
  static void relax(std::uint64_t) {}
};
inline std::unique_ptr<SharedMemory> share_in_process(MPI_Comm, int, int, std::size_t) {
  return nullptr;
}

#endif

}  // namespace lockstep
