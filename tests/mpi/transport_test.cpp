#include <lockstep/mpi/environment.hpp>
#include <lockstep/mpi/interop.hpp>

#include "communicator_cases.hpp"

namespace lockstep {

TEST_CASE("collectives give every rank what rank and size say, over MPI") {
  test::check_collectives(from_mpi(MPI_COMM_WORLD));
}

TEST_CASE("folds join in the order of the ranks, over MPI") {
  test::check_folds(from_mpi(MPI_COMM_WORLD));
}

TEST_CASE("messages go round a ring, over MPI") {
  test::check_messages_round_a_ring(from_mpi(MPI_COMM_WORLD));
}

TEST_CASE("splits order ranks by key and cut nodes to size, over MPI") {
  test::check_splits(from_mpi(MPI_COMM_WORLD));
}

TEST_CASE("ranks of a node see each other's words, over MPI") {
  test::check_shared_memory(from_mpi(MPI_COMM_WORLD));
}

TEST_CASE("an error of one rank, whichever it is, is thrown on all ranks with its class, over MPI") {
  test::check_errors_reach_all(from_mpi(MPI_COMM_WORLD));
}

TEST_CASE("a barrier that one rank misses ends at its limit and names that rank, whichever it is") {
  constexpr Seconds kLimit{0.2};
  const auto world = from_mpi(MPI_COMM_WORLD);
  const SystemClock clock;
  for (int late = 0; late < world.size() && world.size() > 1; ++late) {
    CAPTURE(late);
    // Each round on a communicator of its own: what an abandoned barrier leaves in flight must not be mixed
    // up.
    WaitPolicy policy;
    policy.limit = kLimit;
    const auto limited = from_mpi(MPI_COMM_WORLD).with_policy(policy);
    auto node = std::make_unique<Communicator>(limited.split_by_node());
    auto memory = node->share(64);
    if (world.rank() != late) {
      const Seconds start = clock.now();
      try {
        limited.barrier("the test");
        CHECK(false);
      } catch (const DeadlineExceeded& error) {
        const double waited = (clock.now() - start).count();
        CHECK(waited >= kLimit.count());
        WARN(waited <= kLimit.count() + 0.1);  // held in simulated time; here another job may have the core
        const std::string text = error.what();
        CHECK(text.find("the test") != std::string::npos);
        // A rank that was slow to come may be named beside it.
        if (world.rank() == 0) {
          CHECK(text.find("missing: rank") != std::string::npos);
          CHECK(text.find(std::to_string(late)) != std::string::npos);
        }
      }
      // Goes without the rank that is missing, which knows of nothing.
      memory.reset();
      node.reset();
    }
    world.barrier("the end of a round");
    if (world.rank() == late) {
      static_cast<void>(memory.release());
      static_cast<void>(node.release());
      static_cast<void>(new Communicator(limited));
    }
  }
}

}  // namespace lockstep
