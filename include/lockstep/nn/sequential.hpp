#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <lockstep/nn/chain.hpp>
#include <lockstep/nn/layer.hpp>
#include <lockstep/nn/loss.hpp>
#include <lockstep/nn/softmax_cross_entropy.hpp>
#include <lockstep/state/arena.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

/// Memory for one pass of one model over one micro-batch: activations, the layers' scratch, and the room that
/// the layers share.
/// Each thread needs its own. Refers to the kernels, which must outlive it.
class Workspace {
 public:
  std::int64_t micro_batch() const noexcept { return micro_batch_; }
  const Kernels& kernels() const noexcept { return *kernels_; }
  std::size_t bytes() const noexcept { return memory_.size() * sizeof(float); }

 private:
  friend class Sequential;
  const Kernels* kernels_ = nullptr;
  std::int64_t micro_batch_ = 0;
  Arena memory_;
  std::unique_ptr<Plan> plan_;
  std::span<float> output_;
  std::span<float> output_gradient_;
  std::span<float> scratch_;
  std::span<float> room_;
};

/// What a training pass is told beside the samples.
struct TrainingPass {
  Draw draw = {};
  std::span<float> statistics = {};  ///< gets what the micro-batch adds to the State's buffers
  float statistics_share = 1;        ///< 1 / micro-batches of the step
};

/// Layers one after the other, and a loss at the end:
///
///     Sequential model{{28, 28}};            // the shape of one sample
///     model.add(Dense{512, Activation::relu});
///     model.add(Dense{10});
///     model.declare(state);                  // then state.freeze(...)
///     model.initialize(state, seed);
///     Workspace workspace = model.workspace(kernels, micro_batch);
///
/// After `declare` the model is const and threads may share it. It uses the State's parameters where they
/// lie, so the State must outlive it. All functions are local.
class Sequential {
 public:
  explicit Sequential(Shape input);

  template <std::derived_from<Layer> T>
  Sequential& add(T layer) {
    return add(std::make_unique<T>(std::move(layer)));
  }
  Sequential& add(std::unique_ptr<Layer> layer);

  /// Softmax cross-entropy unless another is set. Before `declare`.
  void set_loss(std::unique_ptr<Loss> loss);

  /// Names each layer by its kind and a count ("dense0", "dense1") behind `prefix`, and declares its
  /// parameters in order. Throws UsageError when layers do not fit together; the State is then of no more
  /// use.
  void declare(State& state, const std::string& prefix = "");

  /// Writes all initial values: a function of the seed, whatever the rank. After the State is frozen.
  void initialize(const State& state, std::uint64_t seed) const;

  /// Allocates memory for passes over up to `micro_batch` samples.
  Workspace workspace(const Kernels& kernels, std::int64_t micro_batch) const;

  /// What that takes, beside what the kernels make for themselves.
  std::size_t workspace_bytes(std::int64_t micro_batch) const;

  /// Called during backward with an offset into the gradient arena: from there to the end of the model's
  /// parameters the gradient is complete. Offsets fall; the last one is where the model's parameters begin.
  using GradientReady = std::function<void(std::size_t offset)>;

  /// One micro-batch: `loss` = `scale` times the sum of its samples' losses, and the derivative of that with
  /// respect to each parameter is written (not added) into `gradients`, an arena of the State's layout.
  /// Padding and the gradients of other parameters are not touched. `scale` is 1 / global batch, so that
  /// adding all micro-batches gives the mean. See TrainingPass for layers that are random or keep statistics.
  ///
  /// A function of parameters, buffers, inputs, targets, scale and draw alone: the same bits from any
  /// workspace, thread, rank. Throws UsageError when sizes do not fit the workspace, DataError for an
  /// impossible target.
  void forward_backward(Workspace& workspace, std::span<const float> inputs, const Targets& targets,
                        std::span<float> gradients, float scale, float& loss,
                        const GradientReady& on_gradient_ready = {}, const TrainingPass& training = {}) const;

  /// Sum of the losses of what `predict` returned, and number of correct predictions.
  Score judge(std::span<const float> outputs, const Targets& targets) const;

  /// Both in one; computes no gradient.
  Score evaluate(Workspace& workspace, std::span<const float> inputs, const Targets& targets) const;
  void evaluate(Workspace& workspace, std::span<const float> inputs, const Targets& targets, float& loss_sum,
                std::int64_t& correct) const;

  /// The outputs for some samples. Valid until the next use of the workspace.
  std::span<const float> predict(Workspace& workspace, std::span<const float> inputs) const;

  const Shape& input_shape() const noexcept { return input_; }
  const Shape& output_shape() const noexcept { return output_; }
  std::int64_t parameter_count() const noexcept { return parameter_count_; }

  /// Multiplications and additions to train on one sample: forward, and backward at twice the cost less the
  /// first layer's input gradient, which nobody computes.
  std::int64_t flops_per_sample() const;

  /// One line for each layer and the loss.
  std::string describe() const;

 private:
  std::int64_t check_samples(const Workspace& workspace, std::span<const float> inputs) const;
  std::span<const float> run_forward(const Pass& pass, Workspace& workspace,
                                     std::span<const float> inputs) const;

  Shape input_;
  Shape output_;
  Chain chain_;
  std::unique_ptr<Loss> loss_;
  std::size_t gradient_size_ = 0;  // of the arena, at least
  std::int64_t parameter_count_ = 0;
  bool declared_ = false;
};

}  // namespace lockstep
