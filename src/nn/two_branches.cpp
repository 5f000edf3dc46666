#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/two_branches.hpp>

#include "places.hpp"

namespace lockstep {

// Within the scratch: that of both chains, and what each puts out. In the room of backward: the gradients of
// these, the main chain's input gradient, and then the room of the chains.
struct TwoBranches::Places final : Plan {
  std::unique_ptr<Plan> main, shortcut;
  std::size_t main_scratch = 0, shortcut_scratch = 0;  // sizes
  std::size_t shortcut_at = 0, main_output = 0, shortcut_output = 0;
  std::size_t shortcut_slope = 0, gradient = 0, room = 0;
};

TwoBranches::TwoBranches(Chain main, Chain shortcut)
    : main_(std::move(main)), shortcut_(std::move(shortcut)) {}

std::string TwoBranches::describe() const {
  const auto one_line = [](std::string text) {
    for (std::size_t at = 0; (at = text.find('\n', at)) != std::string::npos;) text.replace(at, 1, ", then ");
    return text;
  };
  return fmt::format(
      "{} ({}){}", kind(), one_line(main_.describe()),
      shortcut_.empty() ? "" : fmt::format("{}({})", joined_by(), one_line(shortcut_.describe())));
}

Shape TwoBranches::declare(State& state, const std::string& name, const Shape& input) {
  input_ = input;
  main_output_ = main_.declare(state, name + "/main", input);
  shortcut_output_ = shortcut_.declare(state, name + "/shortcut", input);
  return join(main_output_, shortcut_output_);
}

void TwoBranches::initialize(const State& state, std::uint64_t seed) const {
  main_.initialize(state, seed);
  shortcut_.initialize(state, seed);
}

std::unique_ptr<Plan> TwoBranches::plan(const Kernels& kernels, std::int64_t samples) const {
  auto places = std::make_unique<Places>();
  places->main = main_.plan(kernels, samples);
  places->shortcut = shortcut_.plan(kernels, samples);
  places->main_scratch = main_.scratch_size(samples);
  places->shortcut_scratch = shortcut_.scratch_size(samples);
  places->shortcut_at = aligned(places->main_scratch);
  places->main_output = places->shortcut_at + aligned(places->shortcut_scratch);
  places->shortcut_output = places->main_output + aligned(elements(main_output_, samples));
  places->shortcut_slope = aligned(elements(main_output_, samples));
  places->gradient = places->shortcut_slope + aligned(elements(shortcut_output_, samples));
  places->room = places->gradient + aligned(elements(input_, samples));
  return places;
}

std::size_t TwoBranches::scratch_size(std::int64_t samples) const {
  return aligned(main_.scratch_size(samples)) + aligned(shortcut_.scratch_size(samples)) +
         aligned(elements(main_output_, samples)) + aligned(elements(shortcut_output_, samples));
}

std::size_t TwoBranches::room_size(std::int64_t samples) const {
  return aligned(elements(main_output_, samples)) + aligned(elements(shortcut_output_, samples)) +
         aligned(elements(input_, samples)) +
         std::max(main_.room_size(samples), shortcut_.room_size(samples));
}

std::int64_t TwoBranches::flops_per_sample() const {
  return main_.flops_per_sample() + shortcut_.flops_per_sample();
}

void TwoBranches::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                          std::span<float> scratch) const {
  const auto& places = static_cast<const Places&>(*pass.plan);
  const std::span<float> main = scratch.subspan(places.main_output, elements(main_output_, pass.samples));
  Pass its = pass;
  its.plan = places.main.get();
  its.room = pass.room.subspan(places.room);
  main_.forward(its, input, main, scratch.first(places.main_scratch));
  std::span<const float> other = input;
  if (!shortcut_.empty()) {
    const std::span<float> shortcut =
        scratch.subspan(places.shortcut_output, elements(shortcut_output_, pass.samples));
    its.plan = places.shortcut.get();
    shortcut_.forward(its, input, shortcut, scratch.subspan(places.shortcut_at, places.shortcut_scratch));
    other = shortcut;
  }
  join(main, other, output);
}

void TwoBranches::backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                           std::span<float> output_gradient, std::span<float> input_gradient,
                           std::span<float> gradients, std::span<float> scratch) const {
  const auto& places = static_cast<const Places&>(*pass.plan);
  const std::size_t main_size = elements(main_output_, pass.samples);
  const std::size_t shortcut_size = elements(shortcut_output_, pass.samples);
  const Slopes slopes =
      split(output, output_gradient,
            {pass.room.first(main_size), pass.room.subspan(places.shortcut_slope, shortcut_size)},
            !shortcut_.empty());  // layers may overwrite the gradient of their output
  Pass its = pass;
  its.room = pass.room.subspan(places.room);
  if (!shortcut_.empty()) {
    its.plan = places.shortcut.get();
    shortcut_.backward(its, input, scratch.subspan(places.shortcut_output, shortcut_size), slopes.shortcut,
                       input_gradient, gradients,
                       scratch.subspan(places.shortcut_at, places.shortcut_scratch));
  } else if (!input_gradient.empty()) {
    std::ranges::copy(slopes.shortcut, input_gradient.begin());
  }
  std::span<float> below;
  if (!input_gradient.empty()) below = pass.room.subspan(places.gradient, input.size());
  its.plan = places.main.get();
  main_.backward(its, input, scratch.subspan(places.main_output, main_size), slopes.main, below, gradients,
                 scratch.first(places.main_scratch));
  if (!input_gradient.empty()) add(below, input_gradient);
}

}  // namespace lockstep
