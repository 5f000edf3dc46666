#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <lockstep/nn/gradient_check.hpp>

namespace lockstep {
namespace {

// What stands where a layer has to write: it shows in a result that is left out, or added to.
constexpr float kNobodyWrote = std::numeric_limits<float>::quiet_NaN();

/// Compares `backward` with central differences of `objective` in each of `values`, which it moves and puts
/// back.
void compare(const std::string& name, std::span<float> values, std::span<const float> backward,
             const std::function<double()>& objective, double step, GradientReport& report) {
  double largest = 1e-6;  // so that a gradient of zeros is compared absolutely
  for (const float gradient : backward) largest = std::max(largest, std::abs(static_cast<double>(gradient)));
  const double here = objective();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float before = values[i];
    // The step that is really made, after rounding.
    const auto up = static_cast<float>(static_cast<double>(before) + step);
    const auto down = static_cast<float>(static_cast<double>(before) - step);
    values[i] = up;
    const double above = objective();
    values[i] = down;
    const double below = objective();
    values[i] = before;
    const double right = (above - here) / (static_cast<double>(up) - static_cast<double>(before));
    const double left = (here - below) / (static_cast<double>(before) - static_cast<double>(down));
    const double central = (above - below) / (static_cast<double>(up) - static_cast<double>(down));
    const double error = std::abs(central - static_cast<double>(backward[i])) / largest;
    // At a kink the slopes on both sides differ, and the derivative is one of them or between: no mistake.
    const double low = std::min(left, right) - 1e-3 * largest;
    const double high = std::max(left, right) + 1e-3 * largest;
    const auto gradient = static_cast<double>(backward[i]);
    const bool kink =
        error > 2e-3 && std::abs(right - left) > 4e-3 * largest && gradient >= low && gradient <= high;
    if (kink) {
      ++report.skipped;
      continue;
    }
    ++report.checked;
    if (!(error <= report.worst) && !std::isnan(report.worst)) {  // nothing is worse than NaN
      report.worst = error;
      report.where = fmt::format("{}[{}]", name, i);
    }
  }
}

std::vector<float> random_values(std::size_t count, std::uint64_t seed, std::uint32_t stream) {
  const Random random(seed, Purpose::test, stream);
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = random.normal(static_cast<std::uint32_t>(i));
  return values;
}

}  // namespace

GradientReport check_gradients(std::unique_ptr<Layer> layer, const Shape& input, const Kernels& kernels,
                               const GradientCheckOptions& options) {
  State state;
  const Shape output = layer->declare(state, "layer", input);
  PlainAllocator allocator;
  state.freeze(allocator);
  layer->initialize(state, options.seed);

  const auto samples = static_cast<std::size_t>(options.samples);
  std::vector<float> in =
      random_values(samples * static_cast<std::size_t>(element_count(input)), options.seed, 0);
  std::vector<float> out(samples * static_cast<std::size_t>(element_count(output)), kNobodyWrote);
  const std::vector<float> weights = random_values(out.size(), options.seed, 1);
  std::vector<float> scratch(layer->scratch_size(options.samples), kNobodyWrote);
  std::vector<float> room(layer->room_size(options.samples), kNobodyWrote);
  const std::unique_ptr<Plan> plan = layer->plan(kernels, options.samples);
  const Pass pass{.kernels = kernels,
                  .samples = options.samples,
                  .training = true,
                  .draw = {.seed = options.seed},
                  .plan = plan.get(),
                  .room = room};
  const auto objective = [&] {
    std::ranges::fill(out, kNobodyWrote);
    std::ranges::fill(room, kNobodyWrote);
    layer->forward(pass, in, out, scratch);
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      sum += static_cast<double>(weights[i]) * static_cast<double>(out[i]);
    }
    return sum;
  };

  objective();
  std::vector<float> output_gradient = weights;
  std::vector<float> input_gradient(in.size(), kNobodyWrote);
  Arena gradients = allocator.allocate(std::max<std::size_t>(1, state.parameter_elements()));
  for (const Tensor& tensor : state.parameter_tensors()) {
    std::ranges::fill(tensor.in(gradients.values()), kNobodyWrote);
  }
  std::ranges::fill(room, kNobodyWrote);
  layer->backward(pass, in, out, output_gradient, input_gradient, gradients.values(), scratch);

  GradientReport report;
  compare("input", in, input_gradient, objective, options.step, report);
  for (const Tensor& tensor : state.parameter_tensors()) {
    compare(tensor.name(), tensor.values(), tensor.in(gradients.values()), objective, options.step, report);
  }
  return report;
}

GradientReport check_gradients(const Sequential& model, State& state, const Kernels& kernels,
                               std::span<const float> inputs, const Targets& targets,
                               const GradientCheckOptions& options) {
  const auto samples = static_cast<std::int64_t>(inputs.size()) / element_count(model.input_shape());
  Workspace workspace = model.workspace(kernels, samples);
  // Training passes throughout: batch norm and dropout are other functions in evaluation.
  const TrainingPass training{.draw = {.seed = options.seed}};
  const Arena moved = PlainAllocator{}.allocate(std::max<std::size_t>(1, state.parameter_elements()));
  const auto objective = [&] {
    float sum = 0;
    model.forward_backward(workspace, inputs, targets, moved.values(), 1.0F, sum, {}, training);
    return static_cast<double>(sum);
  };
  objective();
  const std::vector<float> gradients(moved.values().begin(), moved.values().end());
  GradientReport report;
  for (const Tensor& tensor : state.parameter_tensors()) {
    const auto backward = std::span(gradients).subspan(tensor.offset(), tensor.size());
    compare(tensor.name(), tensor.values(), backward, objective, options.step, report);
  }
  return report;
}

}  // namespace lockstep
