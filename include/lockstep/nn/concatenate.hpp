#pragma once

#include <lockstep/nn/two_branches.hpp>

namespace lockstep {

/// Each position of the output holds the channels (the last dimension) of shortcut(input), then those of
/// main(input): the skips of a U-Net (Ronneberger and others 2015), whose lower levels are the main branch.
class Concatenate final : public TwoBranches {
 public:
  explicit Concatenate(Chain main, Chain shortcut = {});

  std::string_view kind() const noexcept override { return "concatenate"; }

 private:
  std::string_view joined_by() const override { return " beside "; }
  Shape join(const Shape& main, const Shape& shortcut) override;
  void join(std::span<const float> main, std::span<const float> shortcut,
            std::span<float> output) const override;
  Slopes split(std::span<const float> output, std::span<float> output_gradient, const Slopes& room,
               bool apart) const override;

  std::size_t main_channels_ = 0;
  std::size_t shortcut_channels_ = 0;
};

}  // namespace lockstep
