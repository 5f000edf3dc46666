#include <doctest/doctest.h>
#include <fmt/format.h>

#include <lockstep/base/process.hpp>
#include <lockstep/mpi/simulated_world.hpp>

#include "reducer_cases.hpp"

namespace lockstep {
namespace {

/// Gives way until all other ranks wait.
void let_others_come(const Communicator& world) {
  int turns = 0;
  world.wait_until(
      "its time", [&] { return ++turns > 2000; }, [] { return std::string(); });
}

}  // namespace

TEST_CASE("the canonical sum has the serial sum's bits for random ranks, nodes, micro-batches and sizes") {
  const Random random(2026, Purpose::test);
  for (std::uint32_t trial = 0; trial < 200; ++trial) {
    const auto draw = [&](std::uint32_t what, std::uint32_t bound) {
      return random.below(trial * 8 + what, bound);
    };
    test::ReducerCase c;
    const int ranks = 1 + static_cast<int>(draw(0, 8));
    c.ranks_per_node = static_cast<int>(draw(1, static_cast<std::uint32_t>(ranks) + 1));
    c.micro_batches = 1 + draw(2, 64);
    // Ragged ends: from nothing to several slices of 4,096 elements.
    c.elements = 16 * static_cast<std::size_t>(draw(3, 4) == 0 ? draw(4, 600) : draw(4, 12));
    c.specials = draw(5, 2) == 0;
    CAPTURE(trial);
    CAPTURE(ranks);
    CAPTURE(c.ranks_per_node);
    CAPTURE(c.micro_batches);
    CAPTURE(c.elements);
    std::vector<std::int64_t> wrong(static_cast<std::size_t>(ranks), -1);
    SimulatedWorld{ranks, c.ranks_per_node, trial + 1}.run([&](const Communicator& world) {
      wrong[static_cast<std::size_t>(world.rank())] =
          test::differences(world, {c.elements, c.micro_batches, 0, 2, c.specials});
    });
    for (const auto count : wrong) CHECK(count == 0);
  }
}

TEST_CASE("a rank that fails in mid-step leaves nobody waiting, and all learn who it was") {
  for (const auto kind : {ReductionKind::canonical, ReductionKind::mpi}) {
    for (const int per_node : {0, 2}) {
      for (int bad = 0; bad < 4; ++bad) {
        CAPTURE(bad);
        int heard = 0;
        SimulatedWorld{4, per_node, 3}.run([&](const Communicator& world) {
          const Topology topology(world);
          const auto reducer = make_reducer(kind, topology, 64, 8);
          const auto range = reducer->micro_batches();
          for (auto m = range.first; m < range.last; ++m) {
            if (world.rank() == bad) break;
            reducer->begin_micro_batch();
            reducer->end_micro_batch();
          }
          Tally ballot(world.rank());
          if (world.rank() == bad) ballot.say(Says::error);
          if (reducer->reduce(ballot).first_rank(Says::error) == bad) ++heard;
          // A failure between steps meets the others' reduction with a ballot alone.
          if (per_node == 0 && kind == ReductionKind::canonical) {
            Tally later(world.rank());
            if (world.rank() == bad) later.say(Says::error);
            const Tally tally = world.rank() == bad ? reducer->exchange(later) : reducer->reduce(later);
            CHECK(tally.first_rank(Says::error) == bad);
            CHECK(!tally.agrees());
          }
        });
        CHECK(heard == 4);
      }
    }
  }
}

TEST_CASE("values, waits and timers add up to one tally") {
  SimulatedWorld{3, 2, 5}.run([&](const Communicator& world) {
    const Topology topology(world);
    for (const auto kind : {ReductionKind::canonical, ReductionKind::mpi}) {
      const auto reducer = make_reducer(kind, topology, 0, 3);
      Tally ballot(world.rank());
      const std::array values{1.0 + world.rank(), 0.5};
      ballot.set_values(values, 7);
      if (world.is_chief()) ballot.set_timer(63);
      if (world.rank() == 1) ballot.set_signal(10);
      const Tally tally = reducer->exchange(ballot);
      CHECK(tally.value_count() == 2);
      CHECK(tally.value_mean(0) == doctest::Approx(2.0));
      CHECK(tally.value_mean(1) == doctest::Approx(0.5));
      CHECK(tally.timers() == std::uint64_t{1} << 63);
      CHECK(tally.signal() == 10);
      CHECK(tally.first_rank(Says::signal) == 1);
      CHECK(!tally.anyone_says(Says::stop));
      Tally odd(world.rank());
      odd.set_values(values, world.rank() == 2 ? 8 : 7);
      if (kind == ReductionKind::canonical) CHECK(!reducer->exchange(odd).agrees());
    }
  });
}

TEST_CASE("waits add up, and who waited least came last") {
  Tally total;
  for (int rank = 0; rank < 4; ++rank) {
    Tally ballot(rank);
    ballot.set_wait(rank == 2 ? 0.25 : 1.0, rank / 2);
    total.add(ballot);
  }
  CHECK(total.wait_sum() == doctest::Approx(3.25));
  CHECK(total.wait_min() == doctest::Approx(0.25));
  CHECK(total.wait_min_rank() == 2);
  CHECK(total.wait_min_node() == 1);
  CHECK(total.arrival_lag() == doctest::Approx(0.75));
  CHECK(Tally(0).arrival_lag() == 0);
}

TEST_CASE("the next tally names the rank that came last, on one node and on several") {
  for (const int per_node : {0, 2}) {
    for (int late = 0; late < 4; ++late) {
      CAPTURE(per_node);
      CAPTURE(late);
      const auto clock = std::make_shared<FakeClock>();
      SimulatedWorld{4, per_node, 3}.run(
          [&](const Communicator& world) {
            const Topology topology(world);
            const auto reducer = make_reducer(ReductionKind::canonical, topology, 64, 4);
            if (world.rank() == late) {
              let_others_come(world);
              clock->advance(Seconds{2});
            }
            reducer->reduce(Tally(world.rank()));
            reducer->finish();
            const Tally tally = reducer->reduce(Tally(world.rank()));
            CHECK(tally.wait_min_rank() == late);
            CHECK(tally.wait_min_node() == (per_node == 0 ? 0 : late / 2));
            CHECK(tally.wait_min() == 0);
            CHECK(tally.arrival_lag() == doctest::Approx(2.0));
            const auto waits = gather(world, reducer->waits());
            for (int rank = 0; rank < 4; ++rank) {
              CHECK(waits[static_cast<std::size_t>(rank)].steps == 2);
              CHECK(waits[static_cast<std::size_t>(rank)].max == doctest::Approx(rank == late ? 0.0 : 2.0));
            }
          },
          {.clock = clock, .log = {}});
    }
  }
}

TEST_CASE("a rank that does not come is named with its host and what it was last seen doing") {
  const std::string host = SystemIdentity().host();
  for (const int per_node : {0, 2}) {
    for (int missing = 0; missing < 4; ++missing) {
      for (const int begun : {0, 1, 2}) {
        CAPTURE(per_node);
        CAPTURE(missing);
        CAPTURE(begun);
        std::string said[4];
        const auto clock = std::make_shared<FakeClock>();
        SimulatedWorld{4, per_node, 3}.run(
            [&](const Communicator& world) {
              const Topology topology(world);
              const auto reducer = make_reducer(ReductionKind::canonical, topology, 64, 8);
              const bool odd = world.rank() == missing;
              for (int m = 0; m < (odd ? begun : 2); ++m) {
                reducer->begin_micro_batch();
                reducer->end_micro_batch();
              }
              if (odd) {
                for (int i = 0; i < 3; ++i) {
                  let_others_come(world);
                  clock->advance(Seconds{1});
                }
                return;
              }
              try {
                reducer->reduce(Tally(world.rank()));
              } catch (const DeadlineExceeded& error) {
                said[world.rank()] = error.what();
              }
            },
            {.clock = clock, .log = {}, .limit = Seconds{0.5}});
        const auto doing = begun == 0 ? std::string("before the step's first micro-batch")
                                      : fmt::format("in micro-batch {} of 2", begun);
        for (int rank = 0; rank < 4; ++rank) {
          if (rank == missing) continue;
          const bool neighbour = per_node == 0 || rank / 2 == missing / 2;
          const auto expected =
              neighbour ? fmt::format("missing: rank {} on {} (last seen {})", missing, host, doing)
                        : fmt::format("{}, {}", missing / 2 * 2, host);
          CHECK_MESSAGE(said[rank].find(expected) != std::string::npos, said[rank]);
        }
      }
    }
  }
}

}  // namespace lockstep
