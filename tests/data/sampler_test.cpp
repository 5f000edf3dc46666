#include <algorithm>
#include <numeric>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/sampler.hpp>

using namespace lockstep;

namespace {

std::vector<std::int64_t> row(Sampler sampler, std::int64_t steps) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(steps * sampler.global_batch()));
  const auto batch = static_cast<std::size_t>(sampler.global_batch());
  for (std::size_t step = 0; step < static_cast<std::size_t>(steps); ++step) {
    sampler.indices(static_cast<std::int64_t>(step), 0, std::span(all).subspan(step * batch, batch));
  }
  return all;
}

}  // namespace

TEST_CASE("each sample comes once in each epoch, also where epochs end within a step") {
  for (const std::int64_t size : {1, 2, 7, 10, 100}) {
    for (const std::int64_t batch : {1, 3, 10, 64}) {
      CAPTURE(size);
      CAPTURE(batch);
      const Sampler sampler(5, size, batch);
      const std::vector<std::int64_t> all = row(sampler, sampler.steps_for_epochs(4));
      for (int epoch = 0; epoch < 4; ++epoch) {
        const auto start = all.begin() + epoch * size;
        std::vector<std::int64_t> sorted(start, start + size);
        std::sort(sorted.begin(), sorted.end());
        std::vector<std::int64_t> expected(static_cast<std::size_t>(size));
        std::iota(expected.begin(), expected.end(), 0);
        CHECK(sorted == expected);
      }
    }
  }
}

TEST_CASE("epochs and seeds are shuffled differently") {
  const std::vector<std::int64_t> first = row({1, 1000, 1000}, 2);
  CHECK_FALSE(std::equal(first.begin(), first.begin() + 1000, first.begin() + 1000));
  CHECK(row({2, 1000, 1000}, 1) != std::vector<std::int64_t>(first.begin(), first.begin() + 1000));
  CHECK(row({std::uint64_t{1} << 32 | 1, 1000, 1000}, 1) !=
        std::vector<std::int64_t>(first.begin(), first.begin() + 1000));
}

TEST_CASE("a step's samples do not depend on the steps or parts that were asked for before") {
  const std::int64_t batch = 48;
  const std::vector<std::int64_t> all = row({9, 100, batch}, 30);
  Sampler sampler(9, 100, batch);
  for (const std::int64_t step : {29, 3, 0, 17, 16, 29}) {
    for (const std::int64_t parts : {1, 2, 3, 16}) {
      for (std::int64_t part = parts - 1; part >= 0; --part) {
        const std::int64_t count = batch / parts;
        std::vector<std::int64_t> out(static_cast<std::size_t>(count));
        sampler.indices(step, part * count, out);
        CHECK(std::equal(out.begin(), out.end(), all.begin() + step * batch + part * count));
      }
    }
  }
}

TEST_CASE("the shuffle never changes from one version to the next") {
  // A resumed run goes on with the order that the interrupted one had. The values come from another program.
  CHECK(row({1234, 10, 10}, 2) ==
        std::vector<std::int64_t>{3, 9, 1, 0, 6, 8, 7, 4, 5, 2, 7, 0, 9, 6, 1, 4, 2, 8, 3, 5});
}

TEST_CASE("the first place is taken by every sample about equally often") {
  std::vector<int> count(10);
  for (std::uint64_t seed = 0; seed < 10000; ++seed)
    ++count[static_cast<std::size_t>(row({seed, 10, 1}, 1)[0])];
  for (const int n : count) CHECK(std::abs(n - 1000) < 150);  // five standard deviations
}

TEST_CASE("steps_for_epochs rounds up and epoch_of rounds down") {
  const Sampler sampler(1, 100, 48);
  CHECK(sampler.steps_for_epochs(0) == 0);
  CHECK(sampler.steps_for_epochs(1) == 3);
  CHECK(sampler.steps_for_epochs(12) == 25);
  CHECK(sampler.epoch_of(2) == 0);
  CHECK(sampler.epoch_of(3) == 1);
  CHECK_THROWS_AS(sampler.steps_for_epochs(-1), UsageError);
}

TEST_CASE("impossible sizes and ranges are refused") {
  CHECK_THROWS_AS(Sampler(1, 0, 1), UsageError);
  CHECK_THROWS_AS(Sampler(1, std::int64_t{1} << 32, 1), UsageError);
  CHECK_THROWS_AS(Sampler(1, 10, 0), UsageError);
  Sampler sampler(1, 10, 4);
  std::vector<std::int64_t> out(3);
  CHECK_THROWS_AS(sampler.indices(0, 2, out), InternalError);
  CHECK_THROWS_AS(sampler.indices(0, -1, out), InternalError);
  CHECK_THROWS_AS(sampler.indices(-1, 0, out), InternalError);
}
