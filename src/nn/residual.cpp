#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/residual.hpp>

namespace lockstep {

Residual::Residual(Chain main, Chain shortcut, Then then)
    : TwoBranches(std::move(main), std::move(shortcut)), then_(then) {}

std::string Residual::describe() const {
  return TwoBranches::describe() + (then_ == Then::relu ? ", relu" : "");
}

Shape Residual::join(const Shape& main, const Shape& shortcut) {
  if (element_count(main) != element_count(shortcut)) {
    throw UsageError(fmt::format("the branches of a residual block give shapes {} and {}; make them equal",
                                 to_string(main), to_string(shortcut)));
  }
  return main;
}

void Residual::join(std::span<const float> main, std::span<const float> shortcut,
                    std::span<float> output) const {
  const bool cut = then_ == Then::relu;
  const float* a = main.data();
  const float* b = shortcut.data();
  float* to = output.data();
  for (std::size_t i = 0; i < output.size(); ++i) {
    const float value = a[i] + b[i];
    to[i] = cut && value < 0.0F ? 0.0F : value;
  }
}

Residual::Slopes Residual::split(std::span<const float> output, std::span<float> output_gradient,
                                 const Slopes& room, bool apart) const {
  if (then_ == Then::relu) relu_backward(output, output_gradient, output_gradient);
  if (!apart) return {output_gradient, output_gradient};
  std::ranges::copy(output_gradient, room.shortcut.begin());
  return {output_gradient, room.shortcut};
}

}  // namespace lockstep
