#include <lockstep/mpi/simulated_world.hpp>

#include "../mpi/counting_transport.hpp"
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

// TF: SessionManager.testWaitForSessionReturnsNoneAfterTimeout
TEST_CASE("a rank that stays away is named while the others wait, and when max_wait_secs are over") {
  for (int ranks = 2; ranks <= 4; ++ranks) {
    for (int away = 0; away < ranks; ++away) {
      CAPTURE(ranks);
      CAPTURE(away);
      const auto messages = std::make_shared<test::Messages>();
      std::vector<std::string> errors(static_cast<std::size_t>(ranks));
      SimulatedWorld{ranks}.run([&](const Communicator& world) {
        if (world.rank() == away) return;
        const auto clock = std::make_shared<FakeClock>();
        const Communicator waiting(
            std::make_shared<test::CountingTransport>(world, std::make_shared<test::Count>(), clock),
            {.clock = clock, .log = world.is_chief() ? Log(messages) : Log()});
        test::Rank rank(waiting);
        auto options = rank.options();
        options.max_wait_secs = 8;
        errors[static_cast<std::size_t>(world.rank())] =
            test::thrown([&] { MonitoredTrainingSession(waiting, rank.state, options); });
        CHECK(clock->now().count() == doctest::Approx(8).epsilon(0.01));
      });
      const std::string what = "for all ranks to create the session; missing: ";
      const std::string name = "rank " + std::to_string(away);
      for (int rank = 0; rank < ranks; ++rank) {
        if (rank == away) continue;
        CHECK(errors[static_cast<std::size_t>(rank)].starts_with("DeadlineExceeded: "));
        CHECK(test::contains(errors[static_cast<std::size_t>(rank)],
                             what + (rank == 0 ? name : "rank 0, or a rank that it waits for") + ";"));
      }
      CHECK(messages->contain(what + name) == (away != 0));
    }
  }
}

TEST_CASE("hooks hear on_error, not end, where a rank is lost in a step") {
  for (int ranks = 2; ranks <= 4; ++ranks) {
    for (int away = 0; away < ranks; ++away) {
      for (const bool closes : {false, true}) {
        CAPTURE(ranks);
        CAPTURE(away);
        CAPTURE(closes);
        SimulatedWorld{ranks}.run([&](const Communicator& world) {
          const auto clock = std::make_shared<FakeClock>();
          const Communicator waiting(
              std::make_shared<test::CountingTransport>(world, std::make_shared<test::Count>(), clock),
              {.clock = clock, .log = Log(), .limit = Seconds{5}});
          test::Rank rank(waiting);
          auto options = rank.options();
          const auto recorder = std::make_shared<test::Recorder>();
          options.hooks = {recorder};
          if (world.rank() == away) {
            const auto error = test::thrown([&] {
              MonitoredTrainingSession session(waiting, rank.state, options);
              session.run(test::gradient_step);
              throw DataError("away");
            });
            CHECK(error == "DataError: away");
            return;
          }
          MonitoredTrainingSession session(waiting, rank.state, options);
          session.run(test::gradient_step);
          const auto error = test::thrown([&] {
            if (closes) session.close();
            session.run(test::gradient_step);
          });
          CHECK(error.starts_with("DeadlineExceeded: "));
          CHECK(recorder->count("on_error") == 1);
          CHECK("DeadlineExceeded: " + recorder->told == error);
          CHECK(recorder->count("end") == 0);
          CHECK(session.should_stop());
          CHECK("DeadlineExceeded: " + session.stop_reason() == error);
          CHECK(session.stop_cause().by == "a wait for other ranks");
        });
      }
    }
  }
}

}  // namespace lockstep
