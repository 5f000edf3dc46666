#include <lockstep/mpi/simulated_world.hpp>

#include "communicator_cases.hpp"

namespace lockstep {

TEST_CASE("collectives, messages, splits and shared memory hold on 1 to 8 simulated ranks") {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    for (const int per_node : {0, 1, 3}) {
      CAPTURE(ranks);
      CAPTURE(per_node);
      const SimulatedWorld world{ranks, per_node, static_cast<std::uint64_t>(ranks * 10 + per_node)};
      world.run(test::check_collectives);
      world.run(test::check_messages_round_a_ring);
      world.run(test::check_folds);
      world.run(test::check_splits);
      world.run(test::check_shared_memory);
      world.run(test::check_errors_reach_all);
    }
  }
}

TEST_CASE("one seed is one interleaving") {
  const auto trace = [](std::uint64_t seed) {
    std::string order;
    SimulatedWorld{4, 0, seed}.run([&](const Communicator& world) {
      for (int i = 0; i < 5; ++i) {
        order += std::to_string(world.rank());
        world.barrier("a turn");
      }
    });
    return order;
  };
  CHECK(trace(7) == trace(7));
  CHECK(trace(7) != trace(8));
}

TEST_CASE("simulated ranks that wait for a rank that never comes throw instead of hanging") {
  for (int missing = 0; missing < 3; ++missing) {
    CHECK_THROWS_AS(SimulatedWorld{3}.run([&](const Communicator& world) {
      if (world.rank() != missing) world.barrier("the lost one");
    }),
                    InternalError);
  }
}

TEST_CASE("a rank may wait inside a catch block while another throws") {
  std::vector<std::string> caught(3);
  SimulatedWorld{3}.run([&](const Communicator& world) {
    try {
      throw IoError("own error of " + std::to_string(world.rank()));
    } catch (const IoError&) {
      world.barrier("others throw meanwhile");
      try {
        throw;
      } catch (const IoError& again) {
        caught[static_cast<std::size_t>(world.rank())] = again.what();
      }
    }
  });
  for (int rank = 0; rank < 3; ++rank) {
    CHECK(caught[static_cast<std::size_t>(rank)] == "own error of " + std::to_string(rank));
  }
}

TEST_CASE("a rank's text lists runs of ranks") {
  CHECK(to_string_ranks(std::vector{0, 1, 2, 5, 7, 8}) == "0-2, 5, 7, 8");
  CHECK(to_string_ranks({}) == "");
}

TEST_CASE("a single rank without MPI has all operations") {
  const auto self = Communicator::self();
  test::check_collectives(self);
  test::check_messages_round_a_ring(self);
  test::check_folds(self);
  test::check_splits(self);
  test::check_shared_memory(self);
  test::check_errors_reach_all(self);
}

}  // namespace lockstep
