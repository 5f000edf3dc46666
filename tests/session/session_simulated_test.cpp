#include <lockstep/mpi/simulated_world.hpp>

#include "session_case_list.hpp"
#include "session_manager_cases.hpp"

namespace lockstep {

/// A case on 1 to 4 simulated ranks, another interleaving each; a wait without an end throws.
void everywhere(void (*check)(const Communicator&)) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    CAPTURE(ranks);
    SimulatedWorld{ranks, 0, static_cast<std::uint64_t>(ranks)}.run(check);
  }
}

TEST_CASE("errors reach all simulated ranks on one node, on several, and where parameters are shared") {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (const int per_node : {0, 1, 2}) {
      for (const bool shared : {false, true}) {
        SimulatedWorld{ranks, 0, static_cast<std::uint64_t>(10 * ranks + per_node)}.run(
            [&](const Communicator& world) { test::check_errors(world, per_node, shared); });
      }
    }
  }
}

TEST_CASE("a rank that stays away is named when max_wait_secs are over") {
  class Ticking final : public Clock {
   public:
    Seconds now() const override { return now_ += Seconds{1}; }
    double wall_seconds() const override { return 0; }
    void sleep(Seconds) override {}

   private:
    mutable Seconds now_{0};
  };
  for (int late = 1; late < 3; ++late) {
    std::vector<std::string> errors(3);
    WaitPolicy policy;
    policy.clock = std::make_shared<Ticking>();
    SimulatedWorld{3}.run(
        [&](const Communicator& world) {
          if (world.rank() == late) return;
          test::Rank rank(world);
          auto options = rank.options();
          options.max_wait_secs = 3;
          errors[static_cast<std::size_t>(world.rank())] =
              test::thrown([&] { MonitoredTrainingSession(world, rank.state, options); });
        },
        policy);
    CHECK(errors[0].starts_with("DeadlineExceeded: "));
    CHECK(
        test::contains(errors[0], "all ranks to create the session; missing: rank " + std::to_string(late)));
    CHECK(errors[static_cast<std::size_t>(3 - late)].starts_with("DeadlineExceeded: "));
  }
}

}  // namespace lockstep
