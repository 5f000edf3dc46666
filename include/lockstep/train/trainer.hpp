#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <lockstep/base/executor.hpp>
#include <lockstep/data/dataset.hpp>
#include <lockstep/data/prefetch.hpp>
#include <lockstep/nn/kernels.hpp>
#include <lockstep/nn/optimizer.hpp>
#include <lockstep/nn/schedule.hpp>
#include <lockstep/nn/sequential.hpp>
#include <lockstep/session/monitored_training_session.hpp>
#include <lockstep/session/step_context.hpp>
#include <lockstep/train/update.hpp>

namespace lockstep {

/// How the samples of a step are cut up.
struct BatchPlan {
  std::int64_t global_batch = 0;  ///< samples a step, over all ranks
  std::int64_t micro_batch = 0;   ///< samples whose gradient is computed at once
  std::int64_t micro_batches() const noexcept { return global_batch / micro_batch; }
};

/// Checks a plan, and fills in a micro_batch of 0: the largest divisor of global_batch that is at most 32,
/// whatever the ranks. Throws UsageError naming the nearest values that fit. Local.
BatchPlan batch_plan(std::int64_t global_batch, std::int64_t micro_batch);

/// One training step: the gradients of this rank's micro-batches, their canonical sum over all ranks, and the
/// update of this rank's slice of the parameters. Joins model, data and optimizer with a session:
///
///     Trainer trainer({.model = model, ...});
///     session.train([&](StepContext& step) { return trainer.step(step); });
///
/// One a rank; the same arguments on all ranks. What it holds by reference must outlive it.
class Trainer {
 public:
  struct Parts {
    const Sequential& model;
    const Optimizer& optimizer;
    const Schedule& schedule;
    const Kernels& kernels;
    std::shared_ptr<const Dataset> dataset;
    BatchPlan batch;
    std::uint64_t seed = 0;
    State& state;
    Executor& executor;
    int prefetch = 1;  ///< batches made ahead on a thread; 0: made when needed
    UpdateOptions update = {};
    int threads = 1;  ///< of this rank: each works on a micro-batch of its own, which changes no bits
  };

  /// `session` is the one whose steps it will make. Throws UsageError for less than 1 thread. Collective over
  /// each node.
  Trainer(Parts parts, const MonitoredTrainingSession& session);

  /// Collective. Returns `loss`, the mean over the global batch before the update, `learning_rate`, and with
  /// `clip_norm` the `gradient_norm` before clipping, the same on all ranks. A loss that is not finite is
  /// said to all ranks with the ballot; the update is made all the same.
  StepValues step(StepContext& context);

 private:
  /// What one thread works with.
  struct Lane {
    Workspace workspace;
    Arena gradients;  ///< of its micro-batch, until the main thread folds it; the main thread's has none
    const Batch* batch = nullptr;
    std::int64_t micro_batch = 0;  ///< among the owned ones
    std::int64_t step = 0;
    float loss = 0;
    std::unique_ptr<Worker> worker;  // last: it uses the above
  };

  void compute(Lane& lane, std::span<float> gradients, const Sequential::GradientReady& ready);
  void compute_owned(StepContext& context, const Batch& batch);
  static void hand_in(StepContext& context, std::span<float> gradients, std::size_t elements, float loss);

  Parts parts_;
  MicroBatchRange owned_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  Prefetcher batches_;
  Update update_;
};

}  // namespace lockstep
