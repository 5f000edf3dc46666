#include <algorithm>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/sequential.hpp>

#include "places.hpp"

namespace lockstep {

Sequential::Sequential(Shape input)
    : input_(std::move(input)), loss_(std::make_unique<SoftmaxCrossEntropy>()) {}

Sequential& Sequential::add(std::unique_ptr<Layer> layer) {
  if (declared_)
    throw UsageError("a layer was added to a model after it was declared; add all layers before");
  chain_.add(std::move(layer));
  return *this;
}

void Sequential::set_loss(std::unique_ptr<Loss> loss) {
  if (declared_) throw UsageError("the loss of a model was set after it was declared; set it before");
  loss_ = std::move(loss);
}

void Sequential::declare(State& state, const std::string& prefix) {
  if (declared_) throw UsageError("a model was declared twice; make another for another State");
  if (chain_.empty()) throw UsageError("a model without layers cannot be declared; add layers first");
  const std::size_t before = state.parameter_tensors().size();
  output_ = chain_.declare(state, prefix, input_);
  const auto& tensors = state.parameter_tensors();
  for (std::size_t t = before; t < tensors.size(); ++t) {
    parameter_count_ += element_count(tensors[t].shape());
    gradient_size_ = std::max(gradient_size_, tensors[t].offset() + tensors[t].size());
  }
  loss_->check(output_);
  declared_ = true;
}

void Sequential::initialize(const State& state, std::uint64_t seed) const {
  chain_.initialize(state, seed);
}

Workspace Sequential::workspace(const Kernels& kernels, std::int64_t micro_batch) const {
  if (!declared_) throw UsageError("a workspace was asked of a model that is not declared; declare it first");
  if (micro_batch < 1) throw UsageError(fmt::format("micro_batch must be at least 1 (got {})", micro_batch));
  Workspace workspace;
  workspace.kernels_ = &kernels;
  workspace.micro_batch_ = micro_batch;
  const std::size_t output = elements(output_, micro_batch);
  const std::size_t scratch = chain_.scratch_size(micro_batch);
  const std::size_t room = chain_.room_size(micro_batch);
  workspace.memory_ = PlainAllocator{}.allocate(workspace_bytes(micro_batch) / sizeof(float));
  const std::span<float> memory = workspace.memory_.values();
  workspace.output_ = memory.first(output);
  workspace.output_gradient_ = memory.subspan(aligned(output), output);
  workspace.scratch_ = memory.subspan(2 * aligned(output), scratch);
  workspace.room_ = memory.subspan(2 * aligned(output) + aligned(scratch), room);
  workspace.plan_ = chain_.plan(kernels, micro_batch);
  return workspace;
}

std::size_t Sequential::workspace_bytes(std::int64_t micro_batch) const {
  return (2 * aligned(elements(output_, micro_batch)) + aligned(chain_.scratch_size(micro_batch)) +
          chain_.room_size(micro_batch)) *
         sizeof(float);
}

std::int64_t Sequential::check_samples(const Workspace& workspace, std::span<const float> inputs) const {
  const std::size_t each = elements(input_, 1);
  const auto samples = static_cast<std::int64_t>(inputs.size() / each);
  if (inputs.size() % each != 0 || samples < 1 || samples > workspace.micro_batch()) {
    throw UsageError(
        fmt::format("{} input values do not make 1 to {} samples of shape {}; give whole samples, no "
                    "more than the workspace was made for",
                    inputs.size(), workspace.micro_batch(), to_string(input_)));
  }
  return samples;
}

std::span<const float> Sequential::run_forward(const Pass& pass, Workspace& workspace,
                                               std::span<const float> inputs) const {
  const std::span<float> output = workspace.output_.first(elements(output_, pass.samples));
  chain_.forward(pass, inputs, output, workspace.scratch_);
  return output;
}

void Sequential::forward_backward(Workspace& workspace, std::span<const float> inputs, const Targets& targets,
                                  std::span<float> gradients, float scale, float& loss,
                                  const GradientReady& on_gradient_ready,
                                  const TrainingPass& training) const {
  if (gradients.size() < gradient_size_) {
    throw UsageError(fmt::format("a gradient arena of {} elements is too small for a model that needs {}",
                                 gradients.size(), gradient_size_));
  }
  const Pass pass{.kernels = workspace.kernels(),
                  .samples = check_samples(workspace, inputs),
                  .training = true,
                  .draw = training.draw,
                  .statistics = training.statistics,
                  .statistics_share = training.statistics_share,
                  .plan = workspace.plan_.get(),
                  .room = workspace.room_};
  const std::span<const float> outputs = run_forward(pass, workspace, inputs);
  const std::span<float> output_gradient = workspace.output_gradient_.first(outputs.size());
  const Score score = loss_->evaluate(pass.samples, outputs, targets, scale, output_gradient);
  loss = static_cast<float>(score.loss_sum * static_cast<double>(scale));
  chain_.backward(pass, inputs, outputs, output_gradient, {}, gradients, workspace.scratch_,
                  on_gradient_ready);
}

Score Sequential::evaluate(Workspace& workspace, std::span<const float> inputs,
                           const Targets& targets) const {
  return judge(predict(workspace, inputs), targets);
}

Score Sequential::judge(std::span<const float> outputs, const Targets& targets) const {
  const auto samples = static_cast<std::int64_t>(outputs.size() / elements(output_shape(), 1));
  return loss_->evaluate(samples, outputs, targets, 1.0F, {});
}

void Sequential::evaluate(Workspace& workspace, std::span<const float> inputs, const Targets& targets,
                          float& loss_sum, std::int64_t& correct) const {
  const Score score = evaluate(workspace, inputs, targets);
  loss_sum = static_cast<float>(score.loss_sum);
  correct = score.correct;
}

std::span<const float> Sequential::predict(Workspace& workspace, std::span<const float> inputs) const {
  const Pass pass{.kernels = workspace.kernels(),
                  .samples = check_samples(workspace, inputs),
                  .training = false,
                  .plan = workspace.plan_.get(),
                  .room = workspace.room_};
  return run_forward(pass, workspace, inputs);
}

std::int64_t Sequential::flops_per_sample() const {
  return chain_.training_flops_per_sample();
}

std::string Sequential::describe() const {
  return chain_.describe() + "\n" + loss_->describe();
}

}  // namespace lockstep
