#include <new>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/prefetch.hpp>

namespace lockstep {
namespace {

constexpr std::align_val_t kAlignment{64};

struct FreeFloats {
  void operator()(float* floats) const { ::operator delete[](floats, kAlignment); }
};

std::unique_ptr<float[], FreeFloats> allocate_floats(std::size_t count) {
  return std::unique_ptr<float[], FreeFloats>(
      static_cast<float*>(::operator new[](count * sizeof(float), kAlignment)));
}

}  // namespace

struct Prefetcher::Slot {
  Slot(std::size_t samples, std::size_t elements, std::size_t labels_each, std::size_t targets_each)
      : inputs(allocate_floats(samples * elements)),
        input_count(samples * elements),
        labels(samples * labels_each),
        targets(samples * targets_each),
        indices(samples) {
    batch.inputs = {inputs.get(), input_count};
    batch.labels = labels;
    batch.targets = targets;
    batch.indices = indices;
  }

  std::unique_ptr<float[], FreeFloats> inputs;
  std::size_t input_count;
  std::vector<std::int32_t> labels;
  std::vector<float> targets;
  std::vector<std::int64_t> indices;
  Batch batch;
  std::exception_ptr failure;
  std::atomic<bool> ready{false};
};

Prefetcher::Prefetcher(std::shared_ptr<const Dataset> dataset, Sampler sampler,
                       std::vector<SampleRange> ranges, Executor& executor, int depth)
    : dataset_(std::move(dataset)), sampler_(std::move(sampler)), ranges_(std::move(ranges)), depth_(depth) {
  if (depth < 0) throw UsageError(fmt::format("prefetch depth is {}; it must be at least 0", depth));
  if (sampler_.dataset_size() != dataset_->size()) {
    throw InternalError(fmt::format("Prefetcher: the sampler is for {} samples, the dataset has {}",
                                    sampler_.dataset_size(), dataset_->size()));
  }
  std::int64_t samples = 0;
  for (const SampleRange& range : ranges_) {
    if (range.first < 0 || range.count < 0 || range.first > sampler_.global_batch() - range.count) {
      throw UsageError(fmt::format("samples {} to {} do not lie within a global batch of {}", range.first,
                                   range.first + range.count, sampler_.global_batch()));
    }
    samples += range.count;
  }
  for (int i = 0; i <= depth; ++i) {
    slots_.push_back(std::make_unique<Slot>(static_cast<std::size_t>(samples),
                                            static_cast<std::size_t>(dataset_->sample_elements()),
                                            static_cast<std::size_t>(dataset_->labels_per_sample()),
                                            static_cast<std::size_t>(dataset_->target_elements())));
  }
  if (depth > 0) worker_ = executor.start("prefetch");
}

Prefetcher::~Prefetcher() {
  discard_ = true;
}

void Prefetcher::make(Slot& slot) {
  std::size_t done = 0;
  for (const SampleRange& range : ranges_) {
    const auto count = static_cast<std::size_t>(range.count);
    sampler_.indices(slot.batch.step, range.first, std::span(slot.indices).subspan(done, count));
    done += count;
  }
  dataset_->fill(slot.indices, {slot.inputs.get(), slot.input_count}, slot.labels);
  if (!slot.targets.empty()) dataset_->fill_targets(slot.indices, slot.targets);
}

void Prefetcher::post(Slot& slot, std::int64_t step) {
  slot.batch.step = step;
  slot.failure = nullptr;
  slot.ready.store(false, std::memory_order_relaxed);
  // Two pointers: std::function keeps them without allocating.
  worker_->post([this, &slot] {
    if (!discard_.load(std::memory_order_relaxed)) {
      try {
        make(slot);
      } catch (...) {
        slot.failure = std::current_exception();
      }
    }
    slot.ready.store(true, std::memory_order_release);
    slot.ready.notify_one();
  });
}

Prefetcher::Slot& Prefetcher::slot_of(std::int64_t step) {
  return *slots_[static_cast<std::size_t>(step) % slots_.size()];
}

void Prefetcher::start(std::int64_t step) {
  if (step < 0) throw InternalError(fmt::format("Prefetcher: step {}", step));
  if (depth_ == 0) return;
  // What was made ahead for other steps is not wanted any more.
  discard_ = true;
  worker_->wait();
  discard_ = false;
  begun_ = true;
  posted_ = step;
  while (posted_ < step + depth_) {
    post(slot_of(posted_), posted_);
    ++posted_;
  }
}

const Batch& Prefetcher::get(std::int64_t step) {
  if (depth_ == 0) {
    if (step < 0) throw InternalError(fmt::format("Prefetcher: step {}", step));
    Slot& slot = *slots_.front();
    slot.batch.step = step;
    make(slot);
    return slot.batch;
  }
  // In order means: the step after the one handed out last, which is `depth` before the next to post.
  const bool in_order = begun_ && step == posted_ - depth_;
  if (!in_order) start(step);
  // The batch handed out before this one is free now, and its slot is that of the step to post next.
  post(slot_of(posted_), posted_);
  ++posted_;
  Slot& slot = slot_of(step);
  slot.ready.wait(false, std::memory_order_acquire);
  if (slot.failure) {
    begun_ = false;
    std::rethrow_exception(std::exchange(slot.failure, nullptr));
  }
  return slot.batch;
}

}  // namespace lockstep
