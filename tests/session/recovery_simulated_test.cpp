#include <lockstep/mpi/simulated_world.hpp>

#include "edge_cases.hpp"
#include "ending_cases.hpp"

namespace lockstep {

/// On 1 to 4 simulated ranks, another interleaving each.
void with_each(const std::function<void(const Communicator& world, bool me, int who)>& check) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (int who = 0; who < ranks; ++who) {
      CAPTURE(ranks);
      CAPTURE(who);
      SimulatedWorld{ranks, 0, static_cast<std::uint64_t>(10 * ranks + who)}.run(
          [&](const Communicator& world) { check(world, world.rank() == who, who); });
    }
  }
}

}  // namespace lockstep
