#include <algorithm>
#include <bit>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/mpi/fold_ranks.hpp>
#include <lockstep/mpi/simulated_world.hpp>

#include "counting_transport.hpp"

// How waits for ranks that do not come are told of and end, in simulated time.

namespace lockstep {
namespace {

/// Keeps every message.
class Messages final : public Log::Sink {
 public:
  void write(LogLevel, std::string_view message) override { lines.emplace_back(message); }
  std::vector<std::string> lines;
};

/// Rank 0 of two, whose partner never comes. The machine is so busy that every turn of a wait takes a while.
class Lonely final : public Transport {
 public:
  explicit Lonely(std::shared_ptr<FakeClock> clock) : clock_(std::move(clock)) {}

  int rank() const noexcept override { return 0; }
  int size() const noexcept override { return 2; }
  Request send(std::span<const std::byte>, int, int) override { return {}; }
  Request receive(std::span<std::byte>, int, int) override { return never(); }
  bool has_message(int, int) override { return false; }
  Request broadcast(std::span<std::byte>, int) override { return never(); }
  Request all_gather(std::span<const std::byte>, std::span<std::byte>) override { return never(); }
  Request all_reduce_sum(std::span<float>) override { return never(); }
  Request all_reduce_value(std::span<std::byte>, Combine) override { return never(); }
  bool test(Request& request) override { return request.done; }
  std::shared_ptr<Transport> split(int, int) override { return nullptr; }
  std::shared_ptr<Transport> split_by_node() override { return nullptr; }
  std::unique_ptr<SharedMemory> share(std::size_t, FirstTouch) override { return nullptr; }
  bool relax(std::uint64_t) override {
    clock_->advance(Seconds{0.03});
    return true;
  }
  void abandon() noexcept override { abandoned = true; }
  [[noreturn]] void abort(int, std::string_view reason) override { throw InternalError(std::string(reason)); }

  bool abandoned = false;

 private:
  static Request never() {
    Request request;
    request.done = false;
    return request;
  }
  std::shared_ptr<FakeClock> clock_;
};

/// Each look takes a second.
class Ticking final : public Clock {
 public:
  Seconds now() const override { return now_ += Seconds{1}; }
  double wall_seconds() const override { return 0; }
  void sleep(Seconds) override {}

 private:
  mutable Seconds now_{0};
};

/// "rank 2", "ranks 1-3, 5".
std::string names_of(int ranks, const std::vector<int>& away) {
  std::vector<int> list;
  for (const int rank : away) {
    if (rank < ranks) list.push_back(rank);
  }
  return (list.size() == 1 ? "rank " : "ranks ") + to_string_ranks(list);
}

}  // namespace

TEST_CASE(
    "every wait ends within 100 ms of its limit, however long a turn of it takes, and is then given up") {
  const std::vector<std::pair<std::string, void (*)(const Communicator&)>> waits = {
      {"a barrier", [](const Communicator& world) { world.barrier("a barrier"); }},
      {"a gather", [](const Communicator& world) { world.all_gather(world.rank()); }},
      {"a broadcast", [](const Communicator& world) { world.broadcast_text("text"); }},
      {"a word", [](const Communicator& world) {
         world.wait_until(
             "a word", [] { return false; }, [] { return std::string("rank 1"); });
       }}};
  for (const auto& entry : waits) {
    const std::string& what = entry.first;
    for (const double limit : {0.02, 0.5, 10.0, 7200.0}) {
      CAPTURE(what);
      CAPTURE(limit);
      const auto clock = std::make_shared<FakeClock>();
      const auto lonely = std::make_shared<Lonely>(clock);
      const auto messages = std::make_shared<Messages>();
      const Communicator world(lonely, {.clock = clock, .log = Log(messages), .limit = Seconds{limit}});
      const Seconds start = clock->now();
      std::string error;
      try {
        entry.second(world);
      } catch (const DeadlineExceeded& exceeded) {
        error = exceeded.what();
      }
      const double late = (clock->now() - start).count() - limit;
      CHECK(late >= -1e-9);
      CHECK(late <= 0.1);
      CHECK(error.find("(the limit) for " + what) != std::string::npos);
      CHECK(lonely->abandoned);
      // Notices after 5 s, and whenever the wait has doubled.
      const std::size_t notices = limit < 5 ? 0 : limit < 100 ? 1 : 11;
      CHECK(messages->lines.size() == notices);
      for (const std::string& line : messages->lines)
        CHECK(line.find("s for " + what + "; missing: ") != std::string::npos);
    }
  }
}

TEST_CASE("a gather names those that have not come") {
  std::vector<std::string> errors(4);
  SimulatedWorld{4, 0, 5}.run([&](const Communicator& world) {
    if (world.rank() == 2) return;
    const auto clock = std::make_shared<FakeClock>();
    const Communicator waiting(
        std::make_shared<test::CountingTransport>(world, std::make_shared<test::Count>(), clock),
        {.clock = clock, .log = Log(), .limit = Seconds{8}});
    try {
      waiting.all_gather(world.rank());
    } catch (const DeadlineExceeded& error) {
      errors[static_cast<std::size_t>(world.rank())] = error.what();
    }
  });
  CHECK(errors[0].find("for a gather; missing: rank 2;") != std::string::npos);
  for (const int rank : {1, 3}) {
    const std::string& told = errors[static_cast<std::size_t>(rank)];
    CHECK(told.find("for a gather; missing: rank 0, or a rank that it waits for;") != std::string::npos);
  }
}

TEST_CASE("a fold names those that have not come, and takes as many messages as a logarithm") {
  std::vector<std::string> errors(4);
  SimulatedWorld{4, 0, 5}.run([&](const Communicator& world) {
    if (world.rank() == 2) return;
    const auto clock = std::make_shared<FakeClock>();
    const Communicator waiting(
        std::make_shared<test::CountingTransport>(world, std::make_shared<test::Count>(), clock),
        {.clock = clock, .log = Log(), .limit = Seconds{8}});
    try {
      fold_ranks(waiting, "all to agree", world.rank(), std::plus<>());
    } catch (const DeadlineExceeded& error) {
      errors[static_cast<std::size_t>(world.rank())] = error.what();
    }
  });
  CHECK(errors[0].find("for all to agree; missing: rank 2;") != std::string::npos);
  for (int ranks : {1, 2, 5, 16, 33, 64}) {
    CAPTURE(ranks);
    std::vector<test::Count> counts(static_cast<std::size_t>(ranks));
    SimulatedWorld{ranks, 0, 1}.run([&](const Communicator& world) {
      const auto count = std::make_shared<test::Count>();
      const Communicator counted(std::make_shared<test::CountingTransport>(world, count));
      const int sum = fold_ranks(counted, "the test", world.rank(), std::plus<>());
      CHECK(sum == ranks * (ranks - 1) / 2);
      counts[static_cast<std::size_t>(world.rank())] = *count;
    });
    for (const test::Count& count : counts) {
      CHECK(count.gathers == 0);
      // A barrier's to and from, and the fold's own.
      CHECK(count.receives <= 2 * std::bit_width(static_cast<unsigned>(ranks)));
      CHECK(count.sends <= 1 + std::bit_width(static_cast<unsigned>(ranks)));
    }
  }
}

TEST_CASE("a barrier names just those that have not come, in notices and at its limit") {
  for (int ranks = 2; ranks <= 9; ++ranks) {
    for (int first = 1; first < ranks; ++first) {
      for (const std::vector<int>& away :
           {std::vector{first}, {first, first + 2}, {first, first + 1, first + 3}}) {
        CAPTURE(ranks);
        CAPTURE(first);
        const auto messages = std::make_shared<Messages>();
        std::vector<std::string> errors(static_cast<std::size_t>(ranks));
        SimulatedWorld{ranks, 0, static_cast<std::uint64_t>(first)}.run([&](const Communicator& world) {
          if (std::ranges::count(away, world.rank()) != 0) return;
          const auto clock = std::make_shared<FakeClock>();
          const Communicator waiting(
              std::make_shared<test::CountingTransport>(world, std::make_shared<test::Count>(), clock),
              {.clock = clock, .log = world.is_chief() ? Log(messages) : Log(), .limit = Seconds{8}});
          try {
            waiting.barrier("all to come");
          } catch (const DeadlineExceeded& error) {
            errors[static_cast<std::size_t>(world.rank())] = error.what();
          }
        });
        const std::string names = "missing: " + names_of(ranks, away);
        CHECK(errors[0].find("for all to come; " + names + ";") != std::string::npos);
        CHECK(messages->lines.size() == 1);  // after 5 s
        for (const std::string& line : messages->lines) CHECK(line.ends_with("for all to come; " + names));
        for (int rank = 1; rank < ranks; ++rank) {
          const bool is_away = std::ranges::count(away, rank) != 0;
          const bool told = errors[static_cast<std::size_t>(rank)].find(
                                "missing: rank 0, or a rank that it waits for;") != std::string::npos;
          CHECK(told == !is_away);
        }
      }
    }
  }
}

TEST_CASE("a barrier holds all until the last has come, asked who is there or not") {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (const bool slow : {false, true}) {
      for (std::uint64_t seed = 0; seed < 20; ++seed) {
        std::vector<int> came(static_cast<std::size_t>(ranks));
        SimulatedWorld{ranks, 0, seed}.run([&](const Communicator& world) {
          // Where each look at the clock takes a second, the chief asks in every barrier.
          const auto waiting =
              slow ? world.with_policy({.clock = std::make_shared<Ticking>(), .log = Log()}) : world;
          for (int round = 1; round <= 6; ++round) {
            came[static_cast<std::size_t>(world.rank())] = round;
            waiting.barrier("a round");
            for (const int theirs : came) CHECK(theirs >= round);
          }
        });
      }
    }
  }
}

TEST_CASE("a barrier takes messages that grow with the logarithm of the number of ranks") {
  for (const int ranks : {2, 3, 4, 7, 16, 33, 64}) {
    CAPTURE(ranks);
    int most = 0;
    int all = 0;
    SimulatedWorld{ranks}.run([&](const Communicator& world) {
      const auto count = std::make_shared<test::Count>();
      const Communicator counted(std::make_shared<test::CountingTransport>(world, count),
                                 {.clock = std::make_shared<FakeClock>(), .log = Log()});
      counted.barrier("a round");
      CHECK(count->sends == count->receives);
      most = std::max(most, count->sends);
      all += count->sends;
    });
    CHECK(most <= std::bit_width(static_cast<unsigned>(ranks - 1)) + 1);
    CHECK(all == 2 * (ranks - 1));
  }
}

}  // namespace lockstep
