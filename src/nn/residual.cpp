#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/residual.hpp>
#include <lockstep/state/arena.hpp>

namespace lockstep {
namespace {

std::size_t aligned(std::size_t elements) {
  return (elements + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

std::size_t elements(const Shape& shape, std::int64_t samples) {
  return static_cast<std::size_t>(element_count(shape)) * static_cast<std::size_t>(samples);
}

}  // namespace

// Within the scratch: that of both chains, what each puts out, the main chain's input gradient, and a copy of
// the output gradient.
struct Residual::Places final : Plan {
  std::unique_ptr<Plan> main, shortcut;
  std::size_t main_scratch = 0, shortcut_scratch = 0;  // sizes
  std::size_t shortcut_at = 0, main_output = 0, shortcut_output = 0, gradient = 0, copy = 0;
};

Residual::Residual(Chain main, Chain shortcut, Then then)
    : main_(std::move(main)), shortcut_(std::move(shortcut)), then_(then) {}

std::string Residual::describe() const {
  const auto one_line = [](std::string text) {
    for (std::size_t at = 0; (at = text.find('\n', at)) != std::string::npos;) text.replace(at, 1, ", then ");
    return text;
  };
  return fmt::format("residual ({}){}{}", one_line(main_.describe()),
                     shortcut_.empty() ? "" : fmt::format(" + ({})", one_line(shortcut_.describe())),
                     then_ == Then::relu ? ", relu" : "");
}

Shape Residual::declare(State& state, const std::string& name, const Shape& input) {
  input_ = input;
  output_ = main_.declare(state, name + "/main", input);
  const Shape other = shortcut_.declare(state, name + "/shortcut", input);
  if (element_count(other) != element_count(output_)) {
    throw UsageError(fmt::format("the branches of a residual block give shapes {} and {}; make them equal",
                                 to_string(output_), to_string(other)));
  }
  return output_;
}

void Residual::initialize(const State& state, std::uint64_t seed) const {
  main_.initialize(state, seed);
  shortcut_.initialize(state, seed);
}

std::unique_ptr<Plan> Residual::plan(const Kernels& kernels, std::int64_t samples) const {
  auto places = std::make_unique<Places>();
  places->main = main_.plan(kernels, samples);
  places->shortcut = shortcut_.plan(kernels, samples);
  places->main_scratch = main_.scratch_size(samples);
  places->shortcut_scratch = shortcut_.scratch_size(samples);
  places->shortcut_at = aligned(places->main_scratch);
  places->main_output = places->shortcut_at + aligned(places->shortcut_scratch);
  places->shortcut_output = places->main_output + aligned(elements(output_, samples));
  places->gradient = places->shortcut_output + aligned(elements(output_, samples));
  places->copy = places->gradient + aligned(elements(input_, samples));
  return places;
}

std::size_t Residual::scratch_size(std::int64_t samples) const {
  return aligned(main_.scratch_size(samples)) + aligned(shortcut_.scratch_size(samples)) +
         3 * aligned(elements(output_, samples)) + aligned(elements(input_, samples));
}

std::int64_t Residual::flops_per_sample() const {
  return main_.flops_per_sample() + shortcut_.flops_per_sample();
}

void Residual::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                       std::span<float> scratch) const {
  const auto& places = static_cast<const Places&>(*pass.plan);
  const std::size_t size = elements(output_, pass.samples);
  const std::span<float> main_output = scratch.subspan(places.main_output, size);
  Pass its = pass;
  its.plan = places.main.get();
  main_.forward(its, input, main_output, scratch.first(places.main_scratch));
  std::span<const float> other = input;
  if (!shortcut_.empty()) {
    const std::span<float> shortcut_output = scratch.subspan(places.shortcut_output, size);
    its.plan = places.shortcut.get();
    shortcut_.forward(its, input, shortcut_output,
                      scratch.subspan(places.shortcut_at, places.shortcut_scratch));
    other = shortcut_output;
  }
  const bool cut = then_ == Then::relu;
  const float* a = main_output.data();
  const float* b = other.data();
  float* to = output.data();
  for (std::size_t i = 0; i < size; ++i) {
    const float value = a[i] + b[i];
    to[i] = cut && value < 0.0F ? 0.0F : value;
  }
}

void Residual::backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                        std::span<float> output_gradient, std::span<float> input_gradient,
                        std::span<float> gradients, std::span<float> scratch) const {
  const auto& places = static_cast<const Places&>(*pass.plan);
  const std::size_t size = elements(output_, pass.samples);
  if (then_ == Then::relu) relu_backward(output, output_gradient, output_gradient);
  const std::span<float> main_output = scratch.subspan(places.main_output, size);
  const std::span<float> shortcut_output = scratch.subspan(places.shortcut_output, size);
  std::span<float> gradient_below;
  if (!input_gradient.empty()) gradient_below = scratch.subspan(places.gradient, input.size());
  Pass its = pass;
  if (shortcut_.empty()) {
    if (!input_gradient.empty()) std::ranges::copy(output_gradient, input_gradient.begin());
  } else {
    // Layers may overwrite the gradient of their output, and two branches want it.
    const std::span<float> copy = scratch.subspan(places.copy, size);
    std::ranges::copy(output_gradient, copy.begin());
    its.plan = places.shortcut.get();
    shortcut_.backward(its, input, shortcut_output, copy, input_gradient, gradients,
                       scratch.subspan(places.shortcut_at, places.shortcut_scratch));
  }
  its.plan = places.main.get();
  main_.backward(its, input, main_output, output_gradient, gradient_below, gradients,
                 scratch.first(places.main_scratch));
  if (!input_gradient.empty()) add(gradient_below, input_gradient);
}

}  // namespace lockstep
