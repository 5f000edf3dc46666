#include "mpi_ranks.hpp"
#include "session_case_list.hpp"
#include "session_manager_cases.hpp"

namespace lockstep {

void everywhere(void (*check)(const Communicator&)) {
  test::on_all_ranks(check);
}

TEST_CASE("errors reach all ranks, on one node and on several") {
  for (const int per_node : {0, 2}) {
    const auto world = from_mpi(MPI_COMM_WORLD);
    test::check_errors(world, per_node, per_node == 0);
  }
}

}  // namespace lockstep
