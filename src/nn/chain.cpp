#include <algorithm>
#include <map>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/chain.hpp>

#include "places.hpp"

namespace lockstep {

struct Chain::Places final : Plan {
  struct Place {
    std::size_t activation = 0;  // offsets within the chain's scratch
    std::size_t scratch = 0;
    std::size_t scratch_size = 0;
    std::unique_ptr<Plan> plan;
  };
  std::vector<Place> places;
  std::size_t gradient = 0;  // the largest of an activation: room for two, in turns, and then for the layers
};

Chain& Chain::add(std::unique_ptr<Layer> layer) {
  parts_.push_back({std::move(layer)});
  return *this;
}

std::string Chain::describe() const {
  std::string text;
  for (const Part& part : parts_) {
    if (!text.empty()) text += "\n";
    text += part.layer->describe();
  }
  return text;
}

Shape Chain::declare(State& state, const std::string& name, const Shape& input) {
  std::map<std::string, int, std::less<>> counts;
  input_ = input;
  Shape shape = input;
  first_trained_ = parts_.size();
  const std::string prefix = name.empty() || name.back() == '/' ? name : name + "/";
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    Part& part = parts_[i];
    const std::string kind(part.layer->kind());
    const std::size_t before = state.parameter_tensors().size();
    shape = part.layer->declare(state, fmt::format("{}{}{}", prefix, kind, counts[kind]++), shape);
    part.output = shape;
    const auto& tensors = state.parameter_tensors();
    if (tensors.size() == before) continue;
    part.has_parameters = true;
    part.offset = tensors[before].offset();
    first_trained_ = std::min(first_trained_, i);
  }
  return shape;
}

void Chain::initialize(const State& state, std::uint64_t seed) const {
  for (const Part& part : parts_) part.layer->initialize(state, seed);
}

std::unique_ptr<Plan> Chain::plan(const Kernels& kernels, std::int64_t samples) const {
  auto made = std::make_unique<Places>();
  std::size_t used = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    Places::Place place;
    place.activation = used;
    // The last layer's output is the chain's.
    if (i + 1 < parts_.size()) used += aligned(elements(parts_[i].output, samples));
    place.scratch = used;
    place.scratch_size = parts_[i].layer->scratch_size(samples);
    used += aligned(place.scratch_size);
    place.plan = parts_[i].layer->plan(kernels, samples);
    made->places.push_back(std::move(place));
  }
  made->gradient = gradient_size(samples);
  return made;
}

std::size_t Chain::scratch_size(std::int64_t samples) const {
  std::size_t used = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (i + 1 < parts_.size()) used += aligned(elements(parts_[i].output, samples));
    used += aligned(parts_[i].layer->scratch_size(samples));
  }
  return used;
}

std::size_t Chain::gradient_size(std::int64_t samples) const {
  std::size_t largest = 0;
  for (std::size_t i = 0; i + 1 < parts_.size(); ++i) {
    largest = std::max(largest, aligned(elements(parts_[i].output, samples)));
  }
  return largest;
}

std::size_t Chain::room_size(std::int64_t samples) const {
  std::size_t largest = 0;
  for (const Part& part : parts_) largest = std::max(largest, part.layer->room_size(samples));
  return 2 * gradient_size(samples) + largest;
}

std::int64_t Chain::flops_per_sample() const {
  std::int64_t flops = 0;
  for (const Part& part : parts_) flops += part.layer->flops_per_sample();
  return flops;
}

std::int64_t Chain::training_flops_per_sample() const {
  std::int64_t flops = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const int passes = i < first_trained_ ? 1 : i == first_trained_ ? 2 : 3;
    flops += passes * parts_[i].layer->flops_per_sample();
  }
  return flops;
}

void Chain::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                    std::span<float> scratch) const {
  if (parts_.empty()) {
    std::ranges::copy(input, output.begin());
    return;
  }
  const auto& plan = static_cast<const Places&>(*pass.plan);
  const auto& places = plan.places;
  const std::span<float> room = pass.room.subspan(2 * plan.gradient);
  std::span<const float> in = input;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const Places::Place& place = places[i];
    const std::span<float> out =
        i + 1 == parts_.size() ? output
                               : scratch.subspan(place.activation, elements(parts_[i].output, pass.samples));
    Pass its = pass;
    its.plan = place.plan.get();
    its.room = room;
    parts_[i].layer->forward(its, in, out, scratch.subspan(place.scratch, place.scratch_size));
    in = out;
  }
}

void Chain::backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                     std::span<float> output_gradient, std::span<float> input_gradient,
                     std::span<float> gradients, std::span<float> scratch) const {
  backward(pass, input, output, output_gradient, input_gradient, gradients, scratch, {});
}

void Chain::backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                     std::span<float> output_gradient, std::span<float> input_gradient,
                     std::span<float> gradients, std::span<float> scratch,
                     const std::function<void(std::size_t)>& on_ready) const {
  if (parts_.empty()) {
    if (!input_gradient.empty()) std::ranges::copy(output_gradient, input_gradient.begin());
    return;
  }
  const auto& plan = static_cast<const Places&>(*pass.plan);
  const std::span<float> room = pass.room.subspan(2 * plan.gradient);
  const std::size_t last = parts_.size() - 1;
  const std::size_t end = input_gradient.empty() ? first_trained_ : 0;
  const auto activation = [&](std::size_t i) {
    return scratch.subspan(plan.places[i].activation, elements(parts_[i].output, pass.samples));
  };
  std::span<float> out_gradient = output_gradient;
  std::size_t turn = 0;
  for (std::size_t i = parts_.size(); i-- > end;) {
    const Places::Place& place = plan.places[i];
    std::span<float> in_gradient = input_gradient;
    if (i > 0) {
      in_gradient = {};  // below the first layer with parameters nobody wants any
      if (i > end) {
        in_gradient = pass.room.subspan(turn * plan.gradient, elements(parts_[i - 1].output, pass.samples));
      }
    }
    const std::span<const float> in = i == 0 ? input : std::span<const float>(activation(i - 1));
    const std::span<const float> out = i == last ? output : std::span<const float>(activation(i));
    Pass its = pass;
    its.plan = place.plan.get();
    its.room = room;
    parts_[i].layer->backward(its, in, out, out_gradient, in_gradient, gradients,
                              scratch.subspan(place.scratch, place.scratch_size));
    if (parts_[i].has_parameters && on_ready) on_ready(parts_[i].offset);
    out_gradient = in_gradient;
    turn = 1 - turn;
  }
}

}  // namespace lockstep
