#include <algorithm>
#include <map>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/sequential.hpp>

namespace lockstep {
namespace {

std::size_t aligned(std::size_t elements) {
  return (elements + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

std::size_t elements(const Shape& shape, std::int64_t samples) {
  return static_cast<std::size_t>(element_count(shape)) * static_cast<std::size_t>(samples);
}

}  // namespace

Sequential::Sequential(Shape input)
    : input_(std::move(input)), loss_(std::make_unique<SoftmaxCrossEntropy>()) {}

Sequential& Sequential::add(std::unique_ptr<Layer> layer) {
  if (declared_)
    throw UsageError("a layer was added to a model after it was declared; add all layers before");
  parts_.push_back({std::move(layer)});
  return *this;
}

void Sequential::set_loss(std::unique_ptr<Loss> loss) {
  if (declared_) throw UsageError("the loss of a model was set after it was declared; set it before");
  loss_ = std::move(loss);
}

void Sequential::declare(State& state, const std::string& prefix) {
  if (declared_) throw UsageError("a model was declared twice; make another for another State");
  if (parts_.empty()) throw UsageError("a model without layers cannot be declared; add layers first");
  std::map<std::string, int, std::less<>> counts;
  Shape shape = input_;
  first_trained_ = parts_.size();
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    Part& part = parts_[i];
    const std::string kind(part.layer->kind());
    const std::size_t before = state.parameter_tensors().size();
    shape = part.layer->declare(state, fmt::format("{}{}{}", prefix, kind, counts[kind]++), shape);
    shapes_.push_back(shape);
    const auto& tensors = state.parameter_tensors();
    if (tensors.size() == before) continue;
    part.has_parameters = true;
    part.offset = tensors[before].offset();
    first_trained_ = std::min(first_trained_, i);
    for (std::size_t t = before; t < tensors.size(); ++t) {
      parameter_count_ += element_count(tensors[t].shape());
      gradient_size_ = std::max(gradient_size_, tensors[t].offset() + tensors[t].size());
    }
  }
  loss_->check(shape);
  declared_ = true;
}

void Sequential::initialize(const State& state, std::uint64_t seed) const {
  for (const Part& part : parts_) part.layer->initialize(state, seed);
}

Workspace Sequential::workspace(const Kernels& kernels, std::int64_t micro_batch) const {
  if (!declared_) throw UsageError("a workspace was asked of a model that is not declared; declare it first");
  if (micro_batch < 1) throw UsageError(fmt::format("micro_batch must be at least 1 (got {})", micro_batch));
  std::size_t total = 0;
  std::size_t largest = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const std::size_t size = aligned(elements(shapes_[i], micro_batch));
    largest = std::max(largest, size);
    total += size + aligned(parts_[i].layer->scratch_size(micro_batch));
  }
  Workspace workspace;
  workspace.kernels_ = &kernels;
  workspace.micro_batch_ = micro_batch;
  workspace.memory_ = PlainAllocator{}.allocate(total + 2 * largest);
  std::size_t used = 0;
  const auto take = [&](std::size_t size) {
    const std::span<float> part = workspace.memory_.values().subspan(used, size);
    used += aligned(size);
    return part;
  };
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    workspace.activations_.push_back(take(elements(shapes_[i], micro_batch)));
    workspace.scratch_.push_back(take(parts_[i].layer->scratch_size(micro_batch)));
  }
  for (std::span<float>& gradient : workspace.gradients_) gradient = take(largest);
  return workspace;
}

std::int64_t Sequential::check_samples(const Workspace& workspace, std::span<const float> inputs) const {
  const std::size_t each = elements(input_, 1);
  const auto samples = static_cast<std::int64_t>(inputs.size() / each);
  if (inputs.size() % each != 0 || samples < 1 || samples > workspace.micro_batch() ||
      workspace.activations_.size() != parts_.size()) {
    throw UsageError(
        fmt::format("{} input values do not make 1 to {} samples of shape {}; give whole samples, no "
                    "more than the workspace was made for",
                    inputs.size(), workspace.micro_batch(), to_string(input_)));
  }
  return samples;
}

std::span<float> Sequential::output_of(const Workspace& workspace, std::size_t part,
                                       std::int64_t samples) const {
  return workspace.activations_[part].first(elements(shapes_[part], samples));
}

std::span<const float> Sequential::input_of(const Workspace& workspace, std::size_t part,
                                            std::span<const float> inputs, std::int64_t samples) const {
  if (part == 0) return inputs;
  return output_of(workspace, part - 1, samples);
}

std::span<const float> Sequential::run_forward(const Pass& pass, Workspace& workspace,
                                               std::span<const float> inputs) const {
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    parts_[i].layer->forward(pass, input_of(workspace, i, inputs, pass.samples),
                             output_of(workspace, i, pass.samples), workspace.scratch_[i]);
  }
  return output_of(workspace, parts_.size() - 1, pass.samples);
}

void Sequential::forward_backward(Workspace& workspace, std::span<const float> inputs, const Targets& targets,
                                  std::span<float> gradients, float scale, float& loss,
                                  const GradientReady& on_gradient_ready) const {
  if (gradients.size() < gradient_size_) {
    throw UsageError(fmt::format("a gradient arena of {} elements is too small for a model that needs {}",
                                 gradients.size(), gradient_size_));
  }
  const Pass pass{
      .kernels = workspace.kernels(), .samples = check_samples(workspace, inputs), .training = true};
  const std::span<const float> outputs = run_forward(pass, workspace, inputs);

  int turn = 0;
  std::span<float> output_gradient = workspace.gradients_[turn].first(outputs.size());
  const Score score = loss_->evaluate(pass.samples, outputs, targets, scale, output_gradient);
  loss = static_cast<float>(score.loss_sum * static_cast<double>(scale));

  for (std::size_t i = parts_.size(); i-- > first_trained_;) {
    const std::span<const float> input = input_of(workspace, i, inputs, pass.samples);
    std::span<float> input_gradient;  // none below the first layer with parameters
    if (i > first_trained_) input_gradient = workspace.gradients_[1 - turn].first(input.size());
    parts_[i].layer->backward(pass, input, output_of(workspace, i, pass.samples), output_gradient,
                              input_gradient, gradients, workspace.scratch_[i]);
    if (parts_[i].has_parameters && on_gradient_ready) on_gradient_ready(parts_[i].offset);
    output_gradient = input_gradient;
    turn = 1 - turn;
  }
}

void Sequential::evaluate(Workspace& workspace, std::span<const float> inputs, const Targets& targets,
                          float& loss_sum, std::int64_t& correct) const {
  const std::span<const float> outputs = predict(workspace, inputs);
  const auto samples = static_cast<std::int64_t>(outputs.size() / elements(output_shape(), 1));
  const Score score = loss_->evaluate(samples, outputs, targets, 1.0F, {});
  loss_sum = static_cast<float>(score.loss_sum);
  correct = score.correct;
}

std::span<const float> Sequential::predict(Workspace& workspace, std::span<const float> inputs) const {
  const Pass pass{
      .kernels = workspace.kernels(), .samples = check_samples(workspace, inputs), .training = false};
  return run_forward(pass, workspace, inputs);
}

std::int64_t Sequential::flops_per_sample() const {
  std::int64_t flops = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const int passes = i < first_trained_ ? 1 : i == first_trained_ ? 2 : 3;
    flops += passes * parts_[i].layer->flops_per_sample();
  }
  return flops;
}

std::string Sequential::describe() const {
  std::string text;
  for (const Part& part : parts_) text += part.layer->describe() + "\n";
  return text + loss_->describe();
}

}  // namespace lockstep
