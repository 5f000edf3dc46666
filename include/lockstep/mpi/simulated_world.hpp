#pragma once

#include <cstdint>
#include <functional>

#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// Simulated ranks in one process, without MPI: each runs `body` on a stack of its own, one at a time, and
/// gives way only inside a wait. Which rank goes on is drawn from `seed`, so one seed is one interleaving and
/// a failure can be replayed.
struct SimulatedWorld {
  int ranks = 1;
  int ranks_per_node = 0;  ///< 0: all on one node
  std::uint64_t seed = 1;

  /// Runs `body(world)` for each rank to its end. When all ranks wait and none can go on, each throws
  /// InternalError naming what it waits for. Throws the exception of the lowest rank whose body threw. Local.
  void run(const std::function<void(const Communicator& world)>& body, WaitPolicy policy = {}) const;
};

}  // namespace lockstep
