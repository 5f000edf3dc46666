#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

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

constexpr std::array kExchanges{ReducerOptions::Exchange::automatic, ReducerOptions::Exchange::doubling,
                                ReducerOptions::Exchange::buckets, ReducerOptions::Exchange::halving};

}  // namespace

TEST_CASE("the canonical sum has the serial sum's bits for random ranks, nodes, micro-batches and sizes") {
  const Random random(2026, Purpose::test);
  for (std::uint32_t trial = 0; trial < 300; ++trial) {
    const auto draw = [&](std::uint32_t what, std::uint32_t bound) {
      return random.below(trial * 16 + what, bound);
    };
    test::ReducerCase c;
    if (draw(11, 2) == 0) c.options.values = kMicroBatchValues + draw(12, 3000);
    const int ranks = 1 + static_cast<int>(draw(0, 8));
    c.ranks_per_node = static_cast<int>(draw(1, static_cast<std::uint32_t>(ranks) + 1));
    c.micro_batches = 1 + draw(2, 64);
    // Ragged ends: from nothing to several slices of 4,096 elements.
    c.elements = 16 * static_cast<std::size_t>(draw(3, 4) == 0 ? draw(4, 1600) : draw(4, 12));
    c.specials = draw(5, 2) == 0;
    c.options.exchange = kExchanges[draw(6, 4)];
    c.options.bucket_bytes = std::size_t{4096} * sizeof(float) * draw(7, 4);
    c.layer = draw(8, 2) == 0 ? 0 : 16 + draw(9, 5000);
    c.options.shard = draw(13, 3) == 0;
    c.apart = !c.options.shard && draw(10, 2) == 0;
    if (c.apart) c.steps = 5;
    CAPTURE(trial);
    CAPTURE(ranks);
    CAPTURE(c.ranks_per_node);
    CAPTURE(c.micro_batches);
    CAPTURE(c.elements);
    CAPTURE(c.options.shard);
    std::vector<std::int64_t> wrong(static_cast<std::size_t>(ranks), -1);
    SimulatedWorld{ranks, c.ranks_per_node, trial + 1}.run([&](const Communicator& world) {
      test::ReducerCase mine = c;
      mine.ranks_per_node = 0;  // the world has them already
      wrong[static_cast<std::size_t>(world.rank())] = test::differences(world, mine);
    });
    for (const auto count : wrong) CHECK(count == 0);
  }
}

TEST_CASE("a rank that fails in mid-step leaves nobody waiting, and all learn who it was") {
  struct Way {
    ReductionKind kind = ReductionKind::canonical;
    bool shard = false;
    bool rounds = false;
    ReducerOptions::Exchange exchange = ReducerOptions::Exchange::automatic;
  };
  for (const Way& way :
       {Way{}, Way{.shard = true}, Way{.rounds = true}, Way{.shard = true, .rounds = true},
        Way{.exchange = ReducerOptions::Exchange::halving}, Way{.kind = ReductionKind::mpi}}) {
    for (const std::size_t elements : {std::size_t{64}, std::size_t{5 * 4096 + 48}}) {
      for (const int per_node : {0, 1, 2, 3}) {
        for (int bad = 0; bad < 4; ++bad) {
          for (const bool begun : {false, true}) {
            CAPTURE(way.shard);
            CAPTURE(way.rounds);
            CAPTURE(way.exchange);
            CAPTURE(elements);
            CAPTURE(per_node);
            CAPTURE(bad);
            int heard = 0;
            int right = 0;
            SimulatedWorld{4, per_node, 3}.run([&](const Communicator& world) {
              const Topology topology(world);
              const std::size_t arenas = topology.node.rank() == 0 ? 2 * elements : 0;
              const auto memory = topology.node.share(arenas * sizeof(float));
              const std::span both(reinterpret_cast<float*>(memory->region(0).data()), 2 * elements);
              ReducerOptions options{
                  .bucket_bytes = 4096 * sizeof(float), .exchange = way.exchange, .shard = way.shard};
              if (way.shard) options.parameters = both.last(elements);
              if (way.rounds) options.residual = both.first(elements);
              const auto reducer = make_reducer(way.kind, topology, elements, 8, options);
              const auto step = [&](bool fails) {
                const auto range = reducer->micro_batches();
                for (auto m = range.first; m < range.last; ++m) {
                  if (fails && (!begun || m > range.first)) break;
                  std::ranges::fill(reducer->begin_micro_batch(), 1.0F);
                  if (m + 1 == range.last) reducer->gradient_ready(4096);
                  reducer->end_micro_batch();
                }
                Tally ballot(world.rank());
                if (fails) ballot.say(Says::error);
                return reducer->reduce(ballot);
              };
              if (step(world.rank() == bad).first_rank(Says::error) == bad) ++heard;
              // What follows, in a reducer of its own as in a session, finds the residual as it was.
              const auto next = make_reducer(way.kind, topology, elements, 8, options);
              const auto range = next->micro_batches();
              for (auto m = range.first; m < range.last; ++m) {
                std::ranges::fill(next->begin_micro_batch(), 1.0F);
                next->end_micro_batch();
              }
              next->reduce(Tally(world.rank()));
              const ElementRange slice = next->slice();
              const auto mine = next->sum().subspan(slice.first, slice.size());
              if (std::ranges::all_of(mine, [](float value) { return value == 8.0F; })) ++right;
              next->finish();
            });
            CHECK(heard == 4);
            CHECK(right == 4);
          }
        }
      }
    }
  }
}

TEST_CASE("buckets that leave during backward hold what all ranks of their node have finished") {
  const Random random(2027, Purpose::test);
  for (std::uint32_t trial = 0; trial < 60; ++trial) {
    const auto draw = [&](std::uint32_t what, std::uint32_t bound) {
      return random.below(trial * 8 + what, bound);
    };
    const int ranks = 3 + static_cast<int>(draw(0, 6));
    const int per_node = 2 + static_cast<int>(draw(1, 3));
    test::ReducerCase c;
    c.micro_batches = ranks + draw(2, 9);
    c.elements =
        4096 * (4 + static_cast<std::size_t>(draw(3, 5))) + 16 * static_cast<std::size_t>(draw(4, 256));
    c.options = {.bucket_bytes = 4096 * sizeof(float) * (1 + static_cast<std::size_t>(draw(5, 2))),
                 .exchange = ReducerOptions::Exchange::buckets};
    c.layer = 700 + draw(6, 6000);
    CAPTURE(trial);
    std::int64_t wrong = 0;
    SimulatedWorld{ranks, per_node, trial + 1}.run(
        [&](const Communicator& world) { wrong += test::differences(world, c); });
    CHECK(wrong == 0);
  }
}

TEST_CASE("where optimizers are sharded, slices of all ranks cover the arena once and come together again") {
  constexpr std::size_t kElements = 13 * 4096 + 32;
  constexpr std::size_t kValues = kMicroBatchValues + 5000;
  constexpr std::int64_t kMicroBatches = 6;
  for (const int per_node : {0, 1, 2, 3}) {
    for (const int ranks : {1, 2, 3, 5}) {
      CAPTURE(per_node);
      CAPTURE(ranks);
      std::vector<int> owners(kElements, 0);  // ranks take turns on one thread
      int right = 0;
      SimulatedWorld{ranks, per_node, 11}.run([&](const Communicator& world) {
        const Topology topology(world);
        // One copy a node, as in a session that shares parameters.
        const auto memory = topology.node.share(topology.node.rank() == 0 ? kElements * sizeof(float) : 0);
        const std::span parameters(reinterpret_cast<float*>(memory->region(0).data()), kElements);
        const auto reducer = make_reducer(ReductionKind::canonical, topology, kElements, kMicroBatches,
                                          {.bucket_bytes = 4 * 4096 * sizeof(float),
                                           .shard = true,
                                           .parameters = parameters,
                                           .values = kValues});
        const ElementRange slice = reducer->slice();
        bool good = slice.size() == 0 || slice.first % 4096 == 0;
        const ElementRange of_node = shard_of_node(topology, kElements, topology.my_node);
        good = good && (slice.size() == 0 || (slice.first >= of_node.first && slice.last <= of_node.last));
        for (std::size_t i = slice.first; i < slice.last; ++i) ++owners[i];
        for (std::int64_t t = 0; t < 2; ++t) {
          const auto range = reducer->micro_batches();
          for (auto m = range.first; m < range.last; ++m) {
            const auto gradient = reducer->begin_micro_batch();
            for (std::size_t i = 0; i < kElements; ++i) gradient[i] = test::gradient_value(t, m, i, false);
            std::ranges::fill(gradient.subspan(kElements), 1.0F);
            reducer->gradient_ready(4096 + 16);
            reducer->end_micro_batch();
          }
          good = reducer->reduce(Tally(world.rank())).agrees() && good;
          for (std::size_t i = slice.first; i < slice.last; ++i) parameters[i] = reducer->sum()[i];
          const auto values = reducer->sum().subspan(kElements);
          const auto all_there = [&] {
            return std::ranges::count(values, static_cast<float>(kMicroBatches)) ==
                   static_cast<std::ptrdiff_t>(kValues);
          };
          // Between nodes they are before the parameters are updated: whoever uses them need not wait again.
          good = good && (topology.nodes == 1 || all_there());
          reducer->finish();
          good = good && all_there();
          std::array<float, kMicroBatches> leaves{};
          for (std::size_t i = 0; i < kElements; ++i) {
            for (std::int64_t m = 0; m < kMicroBatches; ++m) {
              leaves[static_cast<std::size_t>(m)] = test::gradient_value(t, m, i, false);
            }
            good = good && test::same_bits(parameters[i], test::serial_canonical_sum(leaves));
          }
          topology.node.barrier("all to have looked");
        }
        // An optimizer slot: each node has its part, the first gets all.
        const auto slot_memory =
            topology.node.share(topology.node.rank() == 0 ? kElements * sizeof(float) : 0);
        const std::span slot(reinterpret_cast<float*>(slot_memory->region(0).data()), kElements);
        for (std::size_t i = slice.first; i < slice.last; ++i) slot[i] = static_cast<float>(i + 1);
        topology.node.barrier("all to have written");
        reducer->gather(slot);
        for (std::size_t i = 0; topology.my_node == 0 && i < kElements; ++i) {
          good = good && slot[i] == static_cast<float>(i + 1);
        }
        if (good) ++right;
      });
      CHECK(right == ranks);
      CHECK(std::ranges::count(owners, 1) == static_cast<std::ptrdiff_t>(kElements));
    }
  }
}

TEST_CASE("memory for gradients stays within two arenas for each doubling of the owned micro-batches") {
  constexpr std::size_t kElements = std::size_t{1} << 20;
  for (const int ranks : {1, 2, 3, 5, 8}) {
    for (const int per_node : {0, 1, 3}) {
      for (const std::int64_t micro_batches : {1, 2, 3, 8, 13, 22, 64}) {
        CAPTURE(ranks);
        CAPTURE(per_node);
        CAPTURE(micro_batches);
        SimulatedWorld{ranks, per_node, 7}.run(
            [&](const Communicator& world) {
              const Topology topology(world);
              const auto reducer = make_reducer(ReductionKind::canonical, topology, kElements, micro_batches);
              const auto owned =
                  static_cast<std::uint64_t>(std::max<std::int64_t>(1, reducer->micro_batches().size()));
              const auto log2 = static_cast<std::size_t>(std::bit_width(owned - 1));
              constexpr std::size_t kThreads = 1;
              CHECK(reducer->bytes() <= (2 * log2 + kThreads + 1) * kElements * sizeof(float));
            },
            {.clock = std::make_shared<FakeClock>(), .log = {}});
      }
    }
  }
}

TEST_CASE("rounded sums are the same on all nodes, and what one step loses the next ones bring back") {
  constexpr std::size_t kElements = 5 * 4096 + 48;
  constexpr std::size_t kValues = kMicroBatchValues + 100;
  constexpr std::int64_t kMicroBatches = 7;
  constexpr int kSteps = 40;
  for (const int ranks : {1, 2, 3, 5, 9}) {
    for (const int per_node : {0, 1, 2}) {
      for (const bool shard : {false, true}) {
        CAPTURE(ranks);
        CAPTURE(per_node);
        CAPTURE(shard);
        std::vector<std::vector<float>> sums(static_cast<std::size_t>(ranks));
        int right = 0;
        SimulatedWorld{ranks, per_node, 11}.run([&](const Communicator& world) {
          const Topology topology(world);
          const bool first = topology.node.rank() == 0;
          const auto memory = topology.node.share(first ? 2 * kElements * sizeof(float) : 0);
          const std::span arenas(reinterpret_cast<float*>(memory->region(0).data()), 2 * kElements);
          ReducerOptions options{.shard = shard, .values = kValues, .residual = arenas.first(kElements)};
          if (shard) options.parameters = arenas.last(kElements);
          const auto reducer =
              make_reducer(ReductionKind::canonical, topology, kElements, kMicroBatches, options);
          const ElementRange slice = reducer->slice();
          std::vector<double> total(kElements, 0.0);
          std::vector<float> leaves(static_cast<std::size_t>(kMicroBatches));
          bool good = true;
          double rounded_away = 0;
          for (int t = 0; t < kSteps; ++t) {
            const auto range = reducer->micro_batches();
            for (auto m = range.first; m < range.last; ++m) {
              const auto gradient = reducer->begin_micro_batch();
              for (std::size_t i = 0; i < kElements; ++i) {
                gradient[i] = 1e-3F * static_cast<float>((i + 1) % 97) * static_cast<float>(m + 1) / 7.0F;
              }
              // One step has an infinity and a NaN; they must not stay.
              if (t == 3 && m == 2) gradient[5] = std::numeric_limits<float>::infinity();
              if (t == 3 && m == 5) gradient[4099] = std::numeric_limits<float>::quiet_NaN();
              std::ranges::fill(gradient.subspan(kElements), 0.1F);
              reducer->gradient_ready(8192);
              reducer->end_micro_batch();
            }
            good = reducer->reduce(Tally(world.rank())).agrees() && good;
            for (std::size_t i = slice.first; i < slice.last; ++i) {
              const float sum = reducer->sum()[i];
              if (i == 5 || i == 4099) {
                good = good && std::isfinite(sum) == (t != 3);
                continue;
              }
              total[i] += static_cast<double>(sum);
            }
            reducer->finish();
            std::ranges::fill(leaves, 0.1F);
            const auto values = reducer->sum().subspan(kElements);
            good = good && std::ranges::count(values, test::serial_canonical_sum(leaves)) ==
                               static_cast<std::ptrdiff_t>(kValues);
            if (t == kSteps - 1 && !shard) {
              const auto sum = reducer->sum().first(kElements);
              sums[static_cast<std::size_t>(world.rank())].assign(sum.begin(), sum.end());
            }
            topology.world.barrier("all to have looked at this sum");
            // Neither a ballot in the shape of a sum, as sessions send one when they close, nor a step that
            // is dropped changes anything.
            const std::vector<float> before(options.residual.begin(), options.residual.end());
            if (t % 4 == 3) {
              const auto owned = reducer->micro_batches();
              for (auto m = owned.first; m < owned.last; ++m) {
                std::ranges::fill(reducer->begin_micro_batch(), 0.777F);
                reducer->end_micro_batch();
              }
            }
            if (t % 2 == 1) good = reducer->reduce(Tally(world.rank())).agrees() && good;
            good = good && std::ranges::equal(before, options.residual);
            topology.world.barrier("all to have looked at the residual");
          }
          for (std::size_t i = slice.first; i < slice.last; ++i) {
            if (i == 5 || i == 4099) continue;
            double exact = 0;
            for (std::int64_t m = 0; m < kMicroBatches; ++m) {
              exact += 1e-3 * static_cast<double>((i + 1) % 97) * static_cast<double>(m + 1) / 7.0;
            }
            const double lost = std::abs(total[i] - kSteps * exact);
            // Half of the last of eight bits, of the parts of one step and of their sum; and what float
            // loses.
            good = good && lost <= 2 * exact / 256 + 1e-4 * exact;
            rounded_away = std::max(rounded_away, lost / exact);
          }
          // More than float loses: something was rounded at all.
          if (slice.size() > 0) good = good && (rounded_away > 1e-4) == (topology.nodes > 1);
          topology.world.barrier("all to have looked");
          if (good) ++right;
        });
        CHECK(right == ranks);
        for (const auto& sum : sums) CHECK(sum == sums.front());
      }
    }
  }
}

TEST_CASE(
    "ballots alone meet a reduction: nobody waits, and all get the same tally, whoever is the odd one") {
  constexpr int kRanks = 5;
  for (const auto kind : {ReductionKind::canonical, ReductionKind::mpi}) {
    for (const auto exchange : kExchanges) {
      for (const int per_node : {0, 1, 2, 3}) {
        // A bit a rank says who reduces: one alone, all but one, and whole nodes among them.
        for (int who = 1; who < (1 << kRanks) - 1; ++who) {
          CAPTURE(per_node);
          CAPTURE(who);
          int right = 0;
          SimulatedWorld{kRanks, per_node, static_cast<std::uint64_t>(who)}.run(
              [&](const Communicator& world) {
                const Topology topology(world);
                const auto reducer =
                    make_reducer(kind, topology, 3 * 4096, 8,
                                 {.bucket_bytes = 4096 * sizeof(float), .exchange = exchange});
                const auto step = [&](bool reduces, bool ready) {
                  if (!reduces) return reducer->exchange(Tally(world.rank()));
                  const auto range = reducer->micro_batches();
                  for (auto m = range.first; m < range.last; ++m) {
                    std::ranges::fill(reducer->begin_micro_batch(), 1.0F);
                    if (ready) reducer->gradient_ready(4096);
                    reducer->end_micro_batch();
                  }
                  return reducer->reduce(Tally(world.rank()));
                };
                const Tally mixed = step((who >> world.rank() & 1) != 0, true);
                const bool seen = mixed.ranks() == kRanks && !mixed.agrees() && mixed.elements() > 0;
                // Nothing is left behind: what follows is as good as ever.
                const Tally alone = step(false, false);
                const Tally together = step(true, true);
                reducer->finish();
                if (seen && alone.agrees() && alone.elements() == 0 && together.agrees() &&
                    reducer->sum()[4095] == 8.0F && reducer->sum()[3 * 4096 - 1] == 8.0F) {
                  ++right;
                }
              });
          CHECK(right == kRanks);
        }
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
      // The second is no float: it must come through as it is.
      const std::array values{1.0 + world.rank(), 16777217.0};
      ballot.set_values(values, 7);
      if (world.is_chief()) ballot.set_timer(63);
      if (world.rank() == 1) ballot.set_signal(10);
      const Tally tally = reducer->exchange(ballot);
      CHECK(tally.value_count() == 2);
      CHECK(tally.value_mean(0) == doctest::Approx(2.0));
      CHECK(tally.value_mean(1) == 16777217.0);
      CHECK(tally.timers() == std::uint64_t{1} << 63);
      CHECK(tally.signal() == 10);
      CHECK(tally.first_rank(Says::signal) == 1);
      CHECK(!tally.anyone_says(Says::stop));
      Tally odd(world.rank());
      odd.set_values(values, world.rank() == 2 ? 8 : 7);
      CHECK(!reducer->exchange(odd).agrees());
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
