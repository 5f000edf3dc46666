#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <vector>

#include <lockstep/base/executor.hpp>
#include <lockstep/data/dataset.hpp>
#include <lockstep/data/sampler.hpp>

namespace lockstep {

/// Samples first to first + count - 1 of the global batch.
struct SampleRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

/// This rank's part of one step: the samples of its ranges, one after the other.
struct Batch {
  std::int64_t step = -1;
  std::span<const float> inputs;          ///< samples x sample_elements, 64-byte aligned
  std::span<const std::int32_t> labels;   ///< labels_per_sample of each sample
  std::span<const float> targets;         ///< target_elements of each sample
  std::span<const std::int64_t> indices;  ///< which samples of the dataset these are
};

/// Has the batches of the coming steps ready before they are asked for, on a thread of the executor. What
/// `get` returns depends on the step alone, not on the depth, the timing or the step at which it began.
///
/// Local; called by one thread. Allocates everything in the constructor.
class Prefetcher {
 public:
  /// `depth` batches are made ahead of the one in use; with 0 they are made in `get`, and no thread is
  /// started. Throws UsageError for a depth below 0 and ranges outside the global batch.
  Prefetcher(std::shared_ptr<const Dataset> dataset, Sampler sampler, std::vector<SampleRange> ranges,
             Executor& executor, int depth);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// Begins with the batches from `step` on and returns at once. `get` does it where it was not done.
  void start(std::int64_t step);

  /// The batch of `step`, valid until the next call. Steps are meant to come in order; after a jump, what was
  /// made ahead is thrown away. Throws what making this batch threw; asking again tries again.
  const Batch& get(std::int64_t step);

 private:
  struct Slot;

  void make(Slot& slot);
  void post(Slot& slot, std::int64_t step);
  Slot& slot_of(std::int64_t step);

  std::shared_ptr<const Dataset> dataset_;
  Sampler sampler_;
  std::vector<SampleRange> ranges_;
  std::int64_t depth_;
  std::vector<std::unique_ptr<Slot>> slots_;
  bool begun_ = false;        ///< false until the first step is known, and after a failure
  std::int64_t posted_ = -1;  ///< the step after the last one handed to the worker
  std::atomic<bool> discard_{false};
  std::unique_ptr<Worker> worker_;  // last: it uses all of the above
};

}  // namespace lockstep
