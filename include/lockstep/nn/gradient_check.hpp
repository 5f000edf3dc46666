#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <lockstep/nn/layer.hpp>
#include <lockstep/nn/sequential.hpp>

namespace lockstep {

/// How far a backward pass is from what differences of its forward pass say.
struct GradientReport {
  double worst = 0;   ///< largest |backward - difference| of any tensor over the largest entry of that tensor
  std::string where;  ///< where that was: "dense0/weight[17]", "input[3]"
  std::int64_t checked = 0;  ///< elements compared
  std::int64_t skipped = 0;  ///< elements at a kink (ReLU at zero), where a difference says nothing
};

struct GradientCheckOptions {
  std::int64_t samples = 3;
  std::uint64_t seed = 1;
  double step = 1.0 / 64;  ///< of the central differences; forward passes are in float, so not much smaller
};

/// Checks the gradients of a layer's input and of all its parameters against central differences, for random
/// inputs of `input` and random weights on its outputs. Differences are summed in double. A worst of a few
/// 1e-3 is rounding, more is a mistake. NaN stands beforehand wherever the layer has to write, so that what
/// it forgets, or adds to, is found as well. With kernels in bf16 differences say something for functions
/// that are linear alone, with a step of 2: there a worst of 1e-2 is rounding. Local.
GradientReport check_gradients(std::unique_ptr<Layer> layer, const Shape& input, const Kernels& kernels,
                               const GradientCheckOptions& options = {});

/// The same for all parameters of a declared and initialized model and the loss at its end, in training
/// passes that all draw the same random numbers. Changes the parameters while it runs and puts them back.
/// Local.
GradientReport check_gradients(const Sequential& model, State& state, const Kernels& kernels,
                               std::span<const float> inputs, const Targets& targets,
                               const GradientCheckOptions& options = {});

}  // namespace lockstep
