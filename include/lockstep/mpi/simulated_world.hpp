#pragma once

#include <cstdint>
#include <functional>

#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// What becomes of a simulated rank that could go on.
enum class Turn {
  go_on,
  wait,  ///< stands still for now
  lose   ///< has lost the others for good: what it waits for, and every later operation, throws
         ///< DeadlineExceeded
};

/// Simulated ranks in one process, without MPI: each runs `body` on a stack of its own, one at a time, and
/// gives way only inside a wait. Which rank goes on is drawn from `seed`, so one seed is one interleaving and
/// a failure can be replayed.
struct SimulatedWorld {
  int ranks = 1;
  int ranks_per_node = 0;  ///< 0: all on one node
  std::uint64_t seed = 1;

  /// Asked with a rank before each of its operations and each turn of its waits, so that a test can make
  /// ranks die, hang and come late, and time pass. Left out: all go on, and when all ranks wait and none can
  /// go on, each throws InternalError naming what it waits for; else ending such waits is the test's.
  std::function<Turn(int rank)> turn = {};

  /// Runs `body(world)` for each rank to its end. Throws the exception of the lowest rank whose body threw.
  /// Local.
  void run(const std::function<void(const Communicator& world)>& body, WaitPolicy policy = {}) const;
};

}  // namespace lockstep
