#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace lockstep {

/// Says which samples make up each step: a function of (seed, epoch, step), whatever the ranks.
///
/// The epochs run on without a gap: the i-th sample of step t is number t * global_batch + i of the endless
/// row "permutation of epoch 0, permutation of epoch 1, ...", so that each sample is seen once in each epoch
/// and no sample is dropped where an epoch does not end with a step.
///
/// Local. One thread at a time; a copy is independent. Keeps the permutations of two epochs (4 bytes a sample
/// each) and allocates nothing after the second.
class Sampler {
 public:
  /// Throws UsageError unless 1 <= dataset_size < 2^32 and global_batch >= 1.
  Sampler(std::uint64_t seed, std::int64_t dataset_size, std::int64_t global_batch);

  /// Writes the samples first, first + 1, ... of the global batch of `step` (counted from 0) to `out`. Throws
  /// InternalError where these do not lie within the global batch.
  void indices(std::int64_t step, std::int64_t first, std::span<std::int64_t> out);

  std::int64_t dataset_size() const noexcept { return size_; }
  std::int64_t global_batch() const noexcept { return global_batch_; }

  /// The smallest number of steps in which each sample is seen at least `epochs` times.
  std::int64_t steps_for_epochs(std::int64_t epochs) const;

  /// The epoch to which the first sample of `step` belongs.
  std::int64_t epoch_of(std::int64_t step) const noexcept { return step * global_batch_ / size_; }

 private:
  struct Permutation {
    std::int64_t epoch = -1;
    std::vector<std::uint32_t> indices;
  };

  const std::vector<std::uint32_t>& permutation(std::int64_t epoch);

  std::uint64_t seed_;
  std::int64_t size_;
  std::int64_t global_batch_;
  std::array<Permutation, 2> cache_;
};

}  // namespace lockstep
