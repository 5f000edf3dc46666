#pragma once

#include <array>
#include <atomic>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/mpi/fold_ranks.hpp>

// What every transport must do; run over real MPI ranks and over simulated ones.

namespace lockstep::test {

inline void check_collectives(const Communicator& world) {
  const int rank = world.rank();
  const int size = world.size();

  // Values differ per rank; expectations come from rank and size.
  const auto squares = world.all_gather(rank * rank);
  CHECK(squares.size() == static_cast<std::size_t>(size));
  for (int r = 0; r < size; ++r) CHECK(squares[static_cast<std::size_t>(r)] == r * r);

  for (int root = 0; root < size; ++root) {
    std::array<int, 3> values{rank, rank + 1, rank + 2};
    world.broadcast_values(std::span(values), root);
    CHECK(values[2] == root + 2);
    CHECK(world.broadcast_text("from " + std::to_string(rank), root) == "from " + std::to_string(root));
  }

  const auto texts = world.all_gather_text(std::string(static_cast<std::size_t>(rank), 'x'));
  for (int r = 0; r < size; ++r)
    CHECK(texts[static_cast<std::size_t>(r)].size() == static_cast<std::size_t>(r));

  std::vector<float> values{static_cast<float>(rank), 1.0F};
  std::vector<Request> sums;
  world.all_reduce_sum(values, sums);
  for (Request& sum : sums) world.wait(sum, "a sum");
  CHECK(values[0] == static_cast<float>(size * (size - 1) / 2));
  CHECK(values[1] == static_cast<float>(size));

  world.barrier("the test");
}

inline void check_folds(const Communicator& world) {
  const int size = world.size();
  // Joining is associative, and not commutative: an order other than that of the ranks shows.
  struct Range {
    int first;
    int last;
    bool whole;
  };
  const auto join = [](const Range& before, const Range& behind) {
    return Range{before.first, behind.last, before.whole && behind.whole && before.last == behind.first};
  };
  const Range all = fold_ranks(world, "the test", Range{world.rank(), world.rank() + 1, true}, join);
  CHECK(all.first == 0);
  CHECK(all.last == size);
  CHECK(all.whole);

  // Rank r has 100 r values: some have none, and some more than one message takes.
  const auto of = [](int rank) { return std::vector<int>(static_cast<std::size_t>(100 * rank), rank); };
  const std::vector<int> mine = of(world.rank());
  const auto list = fold_lists(world, "the test", mine, [](std::vector<int>& before, const auto& behind) {
    before.insert(before.end(), behind.begin(), behind.end());
  });
  std::vector<int> expected;
  for (int r = 0; r < size; ++r) expected.insert(expected.end(), static_cast<std::size_t>(100 * r), r);
  CHECK(list == expected);
}

inline void check_messages_round_a_ring(const Communicator& world) {
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  const std::int64_t mine = world.rank() + 100;
  std::int64_t theirs = 0;
  Request sent = world.send(std::as_bytes(std::span(&mine, 1)), next, 7);
  Request received = world.receive(std::as_writable_bytes(std::span(&theirs, 1)), previous, 7);
  world.wait(received, "the neighbour");
  world.wait(sent, "the neighbour");
  CHECK(theirs == previous + 100);
}

inline void check_splits(const Communicator& world) {
  const auto half = world.split(world.rank() % 2, -world.rank());
  CHECK(half.size() == (world.size() + (world.rank() % 2 == 0 ? 1 : 0)) / 2);
  // The keys turned the order round: the highest rank comes first.
  const auto ranks = half.all_gather(world.rank());
  CHECK(std::is_sorted(ranks.rbegin(), ranks.rend()));
  const auto node = world.split_by_node(2);
  CHECK(node.size() <= 2);
}

inline void check_shared_memory(const Communicator& world) {
  const auto node = world.split_by_node();
  const auto memory = node.share(8);
  const auto word = [&](int rank) {
    return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(memory->region(rank).data()));
  };
  for (int r = 0; r < node.size(); ++r) CHECK(memory->region(r).size() >= 8);
  for (std::uint64_t round = 1; round <= 3; ++round) {
    word(node.rank()).store(round, std::memory_order_release);
    for (int r = 0; r < node.size(); ++r) {
      node.wait_until(
          "a word", [&] { return word(r).load(std::memory_order_acquire) >= round; },
          [&] { return "rank " + std::to_string(r); });
    }
  }
  CHECK(word(node.rank()).load() == 3);
  node.barrier("the end of the window");
}

inline void check_errors_reach_all(const Communicator& world) {
  try {
    on_chief(world, "the chief", [] { throw DataError("the chief found nothing"); });
    CHECK(false);
  } catch (const DataError& error) {
    CHECK(std::string(error.what()) == "the chief found nothing");
  }
  on_chief(world, "the chief", [] {});
  for (int bad = 0; bad < world.size(); ++bad) {
    std::exception_ptr failure;
    if (world.rank() == bad) failure = std::make_exception_ptr(IoError("disk on fire"));
    try {
      throw_together(world, failure);
      CHECK(false);
    } catch (const IoError& error) {
      const std::string text = error.what();
      CHECK(text.find("disk on fire") != std::string::npos);
      if (bad != 0 && world.rank() != bad) CHECK(text.starts_with("rank " + std::to_string(bad)));
    }
  }
  throw_together(world, nullptr);
}

}  // namespace lockstep::test
