#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/concatenate.hpp>

namespace lockstep {

Concatenate::Concatenate(Chain main, Chain shortcut) : TwoBranches(std::move(main), std::move(shortcut)) {}

Shape Concatenate::join(const Shape& main, const Shape& shortcut) {
  const bool fit = !main.empty() && main.size() == shortcut.size() &&
                   std::equal(main.begin(), main.end() - 1, shortcut.begin());
  if (!fit) {
    throw UsageError(fmt::format(
        "branches of shapes {} and {} cannot lie side by side; make all dimensions but the last equal",
        to_string(shortcut), to_string(main)));
  }
  main_channels_ = static_cast<std::size_t>(main.back());
  shortcut_channels_ = static_cast<std::size_t>(shortcut.back());
  Shape output = main;
  output.back() += shortcut.back();
  return output;
}

void Concatenate::join(std::span<const float> main, std::span<const float> shortcut,
                       std::span<float> output) const {
  const float* left = shortcut.data();
  const float* right = main.data();
  for (float* to = output.data(); to != output.data() + output.size(); right += main_channels_) {
    to = std::copy_n(left, shortcut_channels_, to);
    left += shortcut_channels_;
    to = std::copy_n(right, main_channels_, to);
  }
}

Concatenate::Slopes Concatenate::split(std::span<const float>, std::span<float> output_gradient,
                                       const Slopes& room, bool) const {
  const float* from = output_gradient.data();
  float* left = room.shortcut.data();
  float* right = room.main.data();
  while (from != output_gradient.data() + output_gradient.size()) {
    left = std::copy_n(from, shortcut_channels_, left);
    from += shortcut_channels_;
    right = std::copy_n(from, main_channels_, right);
    from += main_channels_;
  }
  return room;
}

}  // namespace lockstep
