#include <algorithm>
#include <cmath>
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
      workspace_(parts_.model.workspace(parts_.kernels, parts_.batch.micro_batch)),
      batches_(parts_.dataset, Sampler(parts_.seed, parts_.dataset->size(), parts_.batch.global_batch),
               sample_ranges(parts_.batch, owned_), parts_.executor,
               owned_.size() == 0 ? 0 : parts_.prefetch),
      update_(parts_.optimizer, parts_.state, parts_.update, session.topology()) {
  batches_.start(parts_.state.global_step());
}

StepValues Trainer::step(StepContext& context) {
  const std::size_t elements = parts_.state.gradient_elements();
  const float scale = 1.0F / static_cast<float>(parts_.batch.global_batch);
  const auto samples = static_cast<std::size_t>(parts_.batch.micro_batch);
  const std::size_t labels = samples * static_cast<std::size_t>(parts_.dataset->labels_per_sample());
  const auto sample_elements = static_cast<std::size_t>(parts_.dataset->sample_elements());
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
    for (std::size_t m = 0; m < static_cast<std::size_t>(owned_.size()); ++m) {
      const auto gradients = context.begin_micro_batch();
      float loss = 0;
      const auto phase = context.trace().phase("compute");
      parts_.model.forward_backward(
          workspace_, batch.inputs.subspan(m * samples * sample_elements, samples * sample_elements),
          batch.labels.subspan(m * labels, labels), gradients.first(elements), scale, loss, {},
          {.draw = {.seed = parts_.seed,
                    .step = context.number(),
                    .first_sample = (owned_.first + static_cast<std::int64_t>(m)) * parts_.batch.micro_batch},
           .statistics = gradients.subspan(parts_.state.parameter_elements(), parts_.state.buffers().size()),
           .statistics_share = 1.0F / static_cast<float>(parts_.batch.micro_batches())});
      if (!std::isfinite(loss)) context.say_not_finite();
      gradients[elements] = loss;
      context.end_micro_batch();
    }
  }
  context.reduce_micro_batches();
  const float learning_rate = parts_.schedule.learning_rate(context.number());
  update_.apply(context, learning_rate);
  StepValues values{{"loss", context.sum()[elements]}, {"learning_rate", learning_rate}};
  if (const auto norm = update_.gradient_norm()) values.set("gradient_norm", *norm);
  return values;
}

}  // namespace lockstep
