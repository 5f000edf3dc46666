#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <lockstep/nn/optimizer.hpp>
#include <lockstep/reduce/shared_numbers.hpp>
#include <lockstep/session/step_context.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

/// What is done to gradients and parameters beside the optimizer's own formula.
struct UpdateOptions {
  double clip_norm = 0;    ///< scale gradients so that the norm over all parameters is at most this; 0: off
  double clip_value = 0;   ///< cut each element of the gradient to at most this size; 0: off
  float weight_decay = 0;  ///< decoupled from the gradient; 0: off
  std::vector<std::string> no_decay = {"bias", "norm"};  ///< tensors with one of these in their name keep
                                                         ///< weights and, if layerwise, a trust ratio of 1
};

/// The update of the parameters at the end of a step, from the sum of the gradients. Norms are summed over
/// fixed parts of the arena (one tensor, one block of kNormBlock elements) in one order, so that they have
/// the same bits however the ranks share the work.
class Update {
 public:
  /// `topology` is the session's; all must outlive it. `sharded`: see Reducer. Throws UsageError for options
  /// that make no sense. Collective over the node; over all ranks where sharded.
  Update(const Optimizer& optimizer, const State& state, UpdateOptions options, const Topology& topology,
         bool sharded = false);

  /// After `reduce_micro_batches`: updates this rank's slice of the parameters and of the buffers, or all of
  /// them where each rank has its own, and finishes the step. Collective over the node; over all ranks where
  /// sharded.
  void apply(StepContext& context, float learning_rate);

  /// Of the newest step's gradients, before clipping; only known with `clip_norm`. The same on all ranks.
  std::optional<double> gradient_norm() const noexcept { return gradient_norm_; }

 private:
  struct Part {
    ElementRange range;
    std::size_t tensor;
  };
  std::span<const Part> parts_in(ElementRange range) const;
  std::span<const double> exchange(const StepContext& context);
  double norm_of(std::span<const float> gradients, std::span<const Part> mine, const StepContext& context);
  void find_trust_ratios(std::span<const float> gradients, std::span<const Part> mine,
                         const StepContext& context, StepScalars scalars);

  const Optimizer& optimizer_;
  const LayerwiseOptimizer* layerwise_;  ///< the same optimizer, if it is one
  const State& state_;
  UpdateOptions options_;
  std::vector<std::span<float>> slots_;
  std::vector<Part> parts_;   ///< of all tensors, in the order of the arena
  std::vector<bool> decays_;  ///< of each tensor
  std::vector<float> trust_ratios_;
  std::vector<SquareSums> sums_;  ///< of each tensor
  std::vector<double> own_numbers_;
  std::optional<SharedNumbers> numbers_;  ///< two for each part
  std::optional<double> gradient_norm_;
};

}  // namespace lockstep
