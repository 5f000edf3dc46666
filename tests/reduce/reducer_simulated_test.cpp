#include <doctest/doctest.h>

#include <lockstep/mpi/simulated_world.hpp>

#include "reducer_cases.hpp"

namespace lockstep {

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
      ballot.set_wait(0.25 * (2 - world.rank()));
      if (world.is_chief()) ballot.set_timer(63);
      if (world.rank() == 1) ballot.set_signal(10);
      const Tally tally = reducer->exchange(ballot);
      CHECK(tally.value_count() == 2);
      CHECK(tally.value_mean(0) == doctest::Approx(2.0));
      CHECK(tally.value_mean(1) == doctest::Approx(0.5));
      CHECK(tally.wait_sum() == doctest::Approx(0.75));
      CHECK(tally.timers() == std::uint64_t{1} << 63);
      CHECK(tally.signal() == 10);
      CHECK(tally.first_rank(Says::signal) == 1);
      CHECK(!tally.anyone_says(Says::stop));
      if (kind == ReductionKind::canonical) CHECK(tally.wait_min_rank() == 2);
      Tally odd(world.rank());
      odd.set_values(values, world.rank() == 2 ? 8 : 7);
      if (kind == ReductionKind::canonical) CHECK(!reducer->exchange(odd).agrees());
    }
  });
}

}  // namespace lockstep
