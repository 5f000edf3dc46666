#include <lockstep/mpi/interop.hpp>

#include "session_case_list.hpp"
#include "session_manager_cases.hpp"

namespace lockstep {

void everywhere(void (*check)(const Communicator&)) {
  WaitPolicy policy;
  policy.limit = Seconds{10};
  const auto world = from_mpi(MPI_COMM_WORLD, policy);
  check(world);
  world.barrier("the end of a case");
}

TEST_CASE("errors reach all ranks, on one node and on several") {
  for (const int per_node : {0, 2}) {
    const auto world = from_mpi(MPI_COMM_WORLD);
    test::check_errors(world, per_node, per_node == 0);
  }
}

}  // namespace lockstep
