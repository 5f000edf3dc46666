#include <algorithm>
#include <cmath>
#include <exception>
#include <string>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/train/trainer.hpp>

namespace lockstep {
namespace {

constexpr std::int64_t kDefaultMicroBatch = 32;

/// The divisors of `n` next below and above `value`.
std::string nearest_divisors(std::int64_t n, std::int64_t value) {
  std::int64_t below = 1;
  std::int64_t above = n;
  for (std::int64_t d = 1; d <= n / d; ++d) {
    if (n % d != 0) continue;
    for (const std::int64_t divisor : {d, n / d}) {
      if (divisor <= value) below = std::max(below, divisor);
      if (divisor >= value) above = std::min(above, divisor);
    }
  }
  return below == above ? std::to_string(below) : fmt::format("{} or {}", below, above);
}

std::vector<SampleRange> sample_ranges(const BatchPlan& batch, MicroBatchRange owned) {
  if (owned.size() == 0) return {};
  return {{owned.first * batch.micro_batch, owned.size() * batch.micro_batch}};
}

}  // namespace

BatchPlan batch_plan(std::int64_t global_batch, std::int64_t micro_batch) {
  if (global_batch < 1) throw UsageError(fmt::format("global_batch is {}; give at least 1", global_batch));
  if (micro_batch < 0) throw UsageError(fmt::format("micro_batch is {}; give at least 1", micro_batch));
  if (micro_batch == 0) {
    micro_batch = std::min(kDefaultMicroBatch, global_batch);
    while (global_batch % micro_batch != 0) --micro_batch;
  }
  if (global_batch % micro_batch != 0) {
    throw UsageError(
        fmt::format("global_batch {} is not a multiple of micro_batch {}, so it cannot be cut into equal "
                    "micro-batches; choose "
                    "micro_batch {}",
                    global_batch, micro_batch, nearest_divisors(global_batch, micro_batch)));
  }
  return {global_batch, micro_batch};
}

Trainer::Trainer(Parts parts, const MonitoredTrainingSession& session)
    : parts_(std::move(parts)),
      owned_(session.reducer().micro_batches()),
      batches_(parts_.dataset, Sampler(parts_.seed, parts_.dataset->size(), parts_.batch.global_batch),
               sample_ranges(parts_.batch, owned_), parts_.executor,
               owned_.size() == 0 ? 0 : parts_.prefetch),
      update_(parts_.optimizer, parts_.state, parts_.update, session.topology(),
              session.reducer().sharded()) {
  if (parts_.threads < 1) throw UsageError(fmt::format("threads is {}; give at least 1", parts_.threads));
  const std::int64_t lanes = std::clamp<std::int64_t>(owned_.size(), 1, parts_.threads);
  for (std::int64_t i = 0; i < lanes; ++i) {
    auto lane = std::make_unique<Lane>();
    lane->workspace = parts_.model.workspace(parts_.kernels, parts_.batch.micro_batch);
    if (i > 0) {
      lane->gradients = PlainAllocator{}.allocate(parts_.state.gradient_elements());
      lane->worker = parts_.executor.start("compute");
    }
    lanes_.push_back(std::move(lane));
  }
  batches_.start(parts_.state.global_step());
}

/// Forward and backward of the lane's micro-batch. On any thread: touches nothing but the lane and what all
/// share without changing it.
void Trainer::compute(Lane& lane, std::span<float> gradients, const Sequential::GradientReady& ready) {
  const auto samples = static_cast<std::size_t>(parts_.batch.micro_batch);
  const std::size_t inputs = samples * static_cast<std::size_t>(parts_.dataset->sample_elements());
  const std::size_t labels = samples * static_cast<std::size_t>(parts_.dataset->labels_per_sample());
  const std::size_t values = samples * static_cast<std::size_t>(parts_.dataset->target_elements());
  const auto m = static_cast<std::size_t>(lane.micro_batch);
  const Targets targets = values > 0 ? Targets(lane.batch->targets.subspan(m * values, values))
                                     : Targets(lane.batch->labels.subspan(m * labels, labels));
  parts_.model.forward_backward(
      lane.workspace, lane.batch->inputs.subspan(m * inputs, inputs), targets, gradients,
      1.0F / static_cast<float>(parts_.batch.global_batch), lane.loss, ready,
      {.draw = {.seed = parts_.seed,
                .step = lane.step,
                .first_sample = (owned_.first + lane.micro_batch) * parts_.batch.micro_batch},
       .statistics = gradients.subspan(parts_.state.parameter_elements(), parts_.state.buffers().size()),
       .statistics_share = 1.0F / static_cast<float>(parts_.batch.micro_batches())});
}

void Trainer::hand_in(StepContext& context, std::span<float> gradients, std::size_t elements, float loss) {
  if (!std::isfinite(loss)) context.say_not_finite();
  gradients[elements] = loss;
  context.end_micro_batch();
}

/// In rounds of one micro-batch a thread, which the main thread folds in their order.
void Trainer::compute_owned(StepContext& context, const Batch& batch) {
  const std::size_t elements = parts_.state.gradient_elements();
  const auto lanes = static_cast<std::int64_t>(lanes_.size());
  // What has its last gradient leaves for other nodes while the layers before it still run.
  const Sequential::GradientReady ready = [&context](std::size_t offset) { context.gradient_ready(offset); };
  for (std::int64_t begin = 0; begin < owned_.size(); begin += lanes) {
    const std::int64_t busy = std::min(lanes, owned_.size() - begin);
    for (std::int64_t i = 0; i < busy; ++i) {
      Lane& lane = *lanes_[static_cast<std::size_t>(i)];
      lane.batch = &batch;
      lane.micro_batch = begin + i;
      lane.step = context.number();
      // Two pointers: std::function keeps them without allocating.
      if (i > 0) lane.worker->post([this, &lane] { compute(lane, lane.gradients.values(), {}); });
    }
    std::exception_ptr failure;
    try {
      const auto gradients = context.begin_micro_batch();
      const auto phase = context.trace().phase("compute");
      compute(*lanes_.front(), gradients.first(elements),
              begin + 1 == owned_.size() ? ready : Sequential::GradientReady());
      hand_in(context, gradients, elements, lanes_.front()->loss);
    } catch (...) {
      failure = std::current_exception();
    }
    // All are waited for, whatever fails: they use the batch.
    for (std::int64_t i = 1; i < busy; ++i) {
      Lane& lane = *lanes_[static_cast<std::size_t>(i)];
      try {
        lane.worker->wait();
        if (failure) continue;
        const auto gradients = context.begin_micro_batch();
        std::ranges::copy(lane.gradients.values(), gradients.begin());
        hand_in(context, gradients, elements, lane.loss);
      } catch (...) {
        if (!failure) failure = std::current_exception();
      }
    }
    if (failure) std::rethrow_exception(failure);
  }
}

StepValues Trainer::step(StepContext& context) {
  const std::size_t elements = parts_.state.gradient_elements();
  if (context.micro_batches_in_step() != parts_.batch.micro_batches()) {
    throw UsageError(fmt::format(
        "the session sums {} micro-batches a step, the batch of {} samples has {}; set SessionConfig's "
        "micro_batches to that",
        context.micro_batches_in_step(), parts_.batch.global_batch, parts_.batch.micro_batches()));
  }
  if (owned_.size() > 0) {
    const Batch& batch = [&]() -> const Batch& {
      const auto phase = context.trace().phase("data");
      return batches_.get(context.number());
    }();
    compute_owned(context, batch);
  }
  context.reduce_micro_batches();
  const float learning_rate = parts_.schedule.learning_rate(context.number());
  update_.apply(context, learning_rate);
  StepValues values{{"loss", context.sum()[elements]}, {"learning_rate", learning_rate}};
  if (const auto norm = update_.gradient_norm()) values.set("gradient_norm", *norm);
  return values;
}

}  // namespace lockstep
