#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/random.hpp>
#include <lockstep/data/sampler.hpp>

namespace lockstep {

Sampler::Sampler(std::uint64_t seed, std::int64_t dataset_size, std::int64_t global_batch)
    : seed_(seed), size_(dataset_size), global_batch_(global_batch) {
  constexpr std::int64_t kMost = std::numeric_limits<std::uint32_t>::max();
  if (dataset_size < 1 || dataset_size > kMost) {
    throw UsageError(
        fmt::format("a dataset of {} samples cannot be shuffled; it must have 1 to {}", dataset_size, kMost));
  }
  if (global_batch < 1) {
    throw UsageError(fmt::format("global_batch is {}; it must be at least 1", global_batch));
  }
}

void Sampler::indices(std::int64_t step, std::int64_t first, std::span<std::int64_t> out) {
  const auto count = static_cast<std::int64_t>(out.size());
  if (step < 0 || first < 0 || first > global_batch_ - count) {
    throw InternalError(fmt::format("Sampler::indices: samples {} to {} of step {} (the global batch is {})",
                                    first, first + count, step, global_batch_));
  }
  std::int64_t position = step * global_batch_ + first;
  while (!out.empty()) {
    const std::int64_t epoch = position / size_;
    const std::int64_t offset = position % size_;
    const auto run = std::min(out.size(), static_cast<std::size_t>(size_ - offset));
    std::copy_n(permutation(epoch).begin() + offset, run, out.begin());
    out = out.subspan(run);
    position += static_cast<std::int64_t>(run);
  }
}

std::int64_t Sampler::steps_for_epochs(std::int64_t epochs) const {
  if (epochs < 0 || epochs > (std::numeric_limits<std::int64_t>::max() - global_batch_) / size_) {
    throw UsageError(fmt::format("{} epochs are not a number of epochs that can be run", epochs));
  }
  return (epochs * size_ + global_batch_ - 1) / global_batch_;
}

const std::vector<std::uint32_t>& Sampler::permutation(std::int64_t epoch) {
  for (const Permutation& kept : cache_) {
    if (kept.epoch == epoch) return kept.indices;
  }
  Permutation& oldest = cache_[0].epoch <= cache_[1].epoch ? cache_[0] : cache_[1];
  auto& order = oldest.indices;
  order.resize(static_cast<std::size_t>(size_));
  std::iota(order.begin(), order.end(), std::uint32_t{0});
  const Random random(seed_, Purpose::shuffle, static_cast<std::uint32_t>(epoch));
  // Fisher-Yates: place i receives one of the places 0 to i, each equally likely.
  for (auto i = static_cast<std::uint32_t>(size_ - 1); i > 0; --i) {
    std::swap(order[i], order[random.below(i, i + 1)]);
  }
  oldest.epoch = epoch;
  return order;
}

}  // namespace lockstep
