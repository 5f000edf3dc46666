#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/prefetch.hpp>

using namespace lockstep;

namespace {

std::atomic<long> allocations{0};

/// Sample i holds the number i and has the label i % 7.
class Numbers final : public Dataset {
 public:
  explicit Numbers(std::int64_t size) : size_(size) {}
  std::int64_t size() const noexcept override { return size_; }
  const std::vector<std::int64_t>& sample_shape() const noexcept override { return shape_; }
  int classes() const noexcept override { return 7; }
  void fill(std::span<const std::int64_t> indices, std::span<float> inputs,
            std::span<std::int32_t> labels) const override {
    if (fail_at >= 0 && ++fills > fail_at) {
      fail_at = -1;
      throw std::runtime_error("unreadable");
    }
    for (std::size_t i = 0; i < indices.size(); ++i) {
      inputs[2 * i] = static_cast<float>(indices[i]);
      inputs[2 * i + 1] = -static_cast<float>(indices[i]);
      labels[i] = static_cast<std::int32_t>(indices[i] % 7);
    }
  }
  Digest digest() const override { return {}; }

  mutable std::atomic<int> fail_at{-1};  ///< the fill after this many throws, once
  mutable std::atomic<int> fills{0};

 private:
  std::int64_t size_;
  std::vector<std::int64_t> shape_{2};
};

void check_batch(const Batch& batch, std::int64_t step, const std::vector<SampleRange>& ranges,
                 Sampler sampler) {
  CHECK(batch.step == step);
  CHECK(reinterpret_cast<std::uintptr_t>(batch.inputs.data()) % 64 == 0);
  std::size_t k = 0;
  for (const SampleRange& range : ranges) {
    std::vector<std::int64_t> expected(static_cast<std::size_t>(range.count));
    sampler.indices(step, range.first, expected);
    for (const std::int64_t index : expected) {
      CHECK(batch.indices[k] == index);
      CHECK(batch.inputs[2 * k] == static_cast<float>(index));
      CHECK(batch.inputs[2 * k + 1] == -static_cast<float>(index));
      CHECK(batch.labels[k] == index % 7);
      ++k;
    }
  }
  CHECK(batch.labels.size() == k);
  CHECK(batch.inputs.size() == 2 * k);
}

const Sampler kSampler(3, 50, 12);
const std::vector<SampleRange> kRanges{{0, 4}, {9, 2}, {5, 1}};

}  // namespace

// Counts what every thread of this program allocates.
void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

TEST_CASE(
    "batches are the same at every depth, in the background and inline, from any first step and after "
    "jumps") {
  ThreadExecutor threads;
  InlineExecutor inline_executor;
  for (Executor* executor : {static_cast<Executor*>(&threads), static_cast<Executor*>(&inline_executor)}) {
    for (const int depth : {0, 1, 2, 5}) {
      CAPTURE(depth);
      Prefetcher prefetcher(std::make_shared<Numbers>(50), kSampler, kRanges, *executor, depth);
      for (const std::int64_t step : {7, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 4, 5, 100, 101, 99}) {
        check_batch(prefetcher.get(step), step, kRanges, kSampler);
      }
      prefetcher.start(1000);
      check_batch(prefetcher.get(1000), 1000, kRanges, kSampler);
      prefetcher.start(0);
      check_batch(prefetcher.get(1), 1, kRanges, kSampler);
    }
  }
}

TEST_CASE("the batch in use is not overwritten while the next ones are made") {
  ThreadExecutor threads;
  Prefetcher prefetcher(std::make_shared<Numbers>(50), kSampler, kRanges, threads, 3);
  for (std::int64_t step = 0; step < 300; ++step) {
    const Batch& batch = prefetcher.get(step);
    check_batch(batch, step, kRanges, kSampler);
    if (step % 50 == 0) SystemClock().sleep(Seconds(0.002));  // time for the worker to run ahead
    check_batch(batch, step, kRanges, kSampler);
  }
}

TEST_CASE("an error of the dataset comes out of the call for that step, and asking again tries again") {
  ThreadExecutor threads;
  InlineExecutor inline_executor;
  for (Executor* executor : {static_cast<Executor*>(&threads), static_cast<Executor*>(&inline_executor)}) {
    for (const int depth : {0, 1, 4}) {
      CAPTURE(depth);
      const auto dataset = std::make_shared<Numbers>(50);
      dataset->fail_at = 3;
      Prefetcher prefetcher(dataset, kSampler, kRanges, *executor, depth);
      for (std::int64_t step = 0; step < 3; ++step)
        check_batch(prefetcher.get(step), step, kRanges, kSampler);
      CHECK_THROWS_WITH_AS(prefetcher.get(3), "unreadable", std::runtime_error);
      for (std::int64_t step = 3; step < 9; ++step)
        check_batch(prefetcher.get(step), step, kRanges, kSampler);
    }
  }
}

TEST_CASE("a prefetcher may go away at any time") {
  ThreadExecutor threads;
  for (int steps = 0; steps < 20; ++steps) {
    Prefetcher prefetcher(std::make_shared<Numbers>(50), kSampler, kRanges, threads, 4);
    if (steps % 2 == 0) prefetcher.start(0);
    for (int step = 0; step < steps; ++step) prefetcher.get(step);
  }
}

TEST_CASE("after the first epochs nothing is allocated, on no thread") {
  ThreadExecutor threads;
  for (const int depth : {0, 1, 4}) {
    CAPTURE(depth);
    Prefetcher prefetcher(std::make_shared<Numbers>(50), kSampler, kRanges, threads, depth);
    std::int64_t step = 0;
    while (step < 40) prefetcher.get(step++);
    const long before = allocations;
    while (step < 1000) prefetcher.get(step++);
    CHECK(allocations - before == 0);
  }
}

TEST_CASE("a rank without samples gets empty batches") {
  ThreadExecutor threads;
  Prefetcher prefetcher(std::make_shared<Numbers>(50), kSampler, {}, threads, 2);
  CHECK(prefetcher.get(5).step == 5);
  CHECK(prefetcher.get(6).inputs.empty());
}

TEST_CASE("ranges outside the global batch, a negative depth and another dataset's sampler are refused") {
  InlineExecutor executor;
  const auto dataset = std::make_shared<Numbers>(50);
  CHECK_THROWS_AS(Prefetcher(dataset, kSampler, {{10, 3}}, executor, 1), UsageError);
  CHECK_THROWS_AS(Prefetcher(dataset, kSampler, {{-1, 3}}, executor, 1), UsageError);
  CHECK_THROWS_AS(Prefetcher(dataset, kSampler, kRanges, executor, -1), UsageError);
  CHECK_THROWS_AS(Prefetcher(dataset, Sampler(1, 49, 12), kRanges, executor, 1), InternalError);
}
