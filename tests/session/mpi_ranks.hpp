#pragma once

#include <functional>

#include <lockstep/mpi/interop.hpp>

namespace lockstep::test {

/// A claim on the ranks of this program; a wait without an end throws.
inline void on_all_ranks(const std::function<void(const Communicator& world)>& check) {
  WaitPolicy policy;
  policy.limit = Seconds{10};
  const auto world = from_mpi(MPI_COMM_WORLD, policy);
  check(world);
  world.barrier("the end of a case");
}

/// The same, each of them in turn the one that differs.
inline void each_rank_in_turn(const std::function<void(const Communicator& world, bool me, int who)>& check) {
  on_all_ranks([&](const Communicator& world) {
    for (int who = 0; who < world.size(); ++who) check(world, world.rank() == who, who);
  });
}

}  // namespace lockstep::test
