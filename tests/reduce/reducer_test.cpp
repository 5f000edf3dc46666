#include <algorithm>

#include <sys/mman.h>

#include <lockstep/mpi/interop.hpp>
#include <lockstep/reduce/node_allocator.hpp>

#include "reducer_cases.hpp"

namespace lockstep {

TEST_CASE("the canonical sum over MPI ranks has the serial sum's bits, on one node and on several") {
  using Exchange = ReducerOptions::Exchange;
  const auto world = from_mpi(MPI_COMM_WORLD);
  for (const std::int64_t micro_batches : {1, 2, 3, 8, 13, 64}) {
    for (const std::size_t elements : {std::size_t{0}, std::size_t{16}, std::size_t{4096 * 3 + 16}}) {
      for (const int per_node : {0, 1, 2, 3}) {
        for (const auto exchange : {Exchange::doubling, Exchange::buckets, Exchange::halving}) {
          CAPTURE(micro_batches);
          CAPTURE(elements);
          CAPTURE(per_node);
          const ReducerOptions options{.bucket_bytes = 4096 * sizeof(float), .exchange = exchange};
          CHECK(test::differences(world, {elements, micro_batches, per_node, 2, true, options, 1000}) == 0);
        }
      }
    }
  }
}

TEST_CASE("sums that follow each other at once do not touch each other's numbers") {
  const auto world = from_mpi(MPI_COMM_WORLD);
  for (const std::int64_t micro_batches : {2, 7}) {
    for (const std::size_t elements : {std::size_t{16}, std::size_t{1024}, std::size_t{8192}}) {
      CAPTURE(micro_batches);
      CAPTURE(elements);
      const int steps = elements < 1000 ? 60 : 10;
      CHECK(test::differences(
                world,
                {.elements = elements, .micro_batches = micro_batches, .steps = steps, .apart = true}) == 0);
    }
  }
}

TEST_CASE("MPI's own reduction gives the sum, to rounding, and the same tally") {
  const auto world = from_mpi(MPI_COMM_WORLD);
  const Topology topology(world);
  const auto reducer = make_reducer(ReductionKind::mpi, topology, 32, 6);
  for (int step = 0; step < 3; ++step) {
    const auto range = reducer->micro_batches();
    for (auto m = range.first; m < range.last; ++m) {
      const auto gradient = reducer->begin_micro_batch();
      for (std::size_t i = 0; i < 32; ++i) gradient[i] = static_cast<float>(m) + static_cast<float>(i);
      reducer->end_micro_batch();
    }
    Tally ballot(world.rank());
    if (world.rank() == world.size() - 1) ballot.say(Says::not_finite);
    CHECK(reducer->reduce(ballot).first_rank(Says::not_finite) == world.size() - 1);
    reducer->finish();
    for (std::size_t i = 0; i < 32; ++i) {
      CHECK(reducer->sum()[i] == doctest::Approx(15.0F + 6.0F * static_cast<float>(i)));
    }
  }
}

TEST_CASE("an arena shared by a node is one memory") {
  const auto world = from_mpi(MPI_COMM_WORLD);
  const auto node = world.split_by_node();
  NodeAllocator allocator(node);
  const Arena arena = allocator.allocate(100);
  CHECK(reinterpret_cast<std::uintptr_t>(arena.values().data()) % 64 == 0);
  arena.values()[static_cast<std::size_t>(node.rank())] = static_cast<float>(node.rank() + 1);
  node.barrier("writing");
  for (int r = 0; r < node.size(); ++r)
    CHECK(arena.values()[static_cast<std::size_t>(r)] == static_cast<float>(r + 1));
  node.barrier("reading");
}

TEST_CASE(
    "where optimizers are sharded a node has memory for its part of a slot alone; the chief's for all") {
  const auto world = from_mpi(MPI_COMM_WORLD);
  for (const int per_node : {1, 2}) {
    const Topology topology(world, per_node);
    constexpr std::size_t kElements = std::size_t{4} << 20;
    NodeAllocator allocator(topology, true);
    const Arena arena = allocator.allocate_slot(kElements);
    const ElementRange mine = shard_of_node(topology, kElements, topology.my_node);
    for (std::size_t i = mine.first; i < mine.last; i += 1024) CHECK(arena.values()[i] == 0.0F);
    // Its pages, without the first, which may begin before it.
    constexpr std::size_t kPage = 4096;
    auto* first = reinterpret_cast<std::byte*>(arena.values().data());
    std::vector<unsigned char> pages(kElements * sizeof(float) / kPage - 1);
    first += (kPage - reinterpret_cast<std::uintptr_t>(first) % kPage) % kPage;
    REQUIRE(mincore(first, pages.size() * kPage, pages.data()) == 0);
    const auto there = static_cast<std::size_t>(
        std::ranges::count_if(pages, [](unsigned char page) { return (page & 1U) != 0; }));
    const std::size_t own = mine.size() * sizeof(float) / kPage;
    CAPTURE(own);
    if (topology.my_node == 0) {
      CHECK(there == pages.size());
    } else {
      CHECK(there + 2 >= own);
      // A window of one rank comes from the heap, where some of the pages may have been in use before.
      CHECK(there <= own + (pages.size() - own) / 4);
    }
    world.barrier("all to have looked");
  }
}

}  // namespace lockstep
