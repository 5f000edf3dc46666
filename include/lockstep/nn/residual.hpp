#pragma once

#include <lockstep/nn/two_branches.hpp>

namespace lockstep {

/// output = main(input) + shortcut(input), then max(x, 0) if wanted (He and others 2015).
class Residual final : public TwoBranches {
 public:
  enum class Then { nothing, relu };

  explicit Residual(Chain main, Chain shortcut = {}, Then then = Then::nothing);

  std::string_view kind() const noexcept override { return "residual"; }
  std::string describe() const override;

 private:
  std::string_view joined_by() const override { return " + "; }
  Shape join(const Shape& main, const Shape& shortcut) override;
  void join(std::span<const float> main, std::span<const float> shortcut,
            std::span<float> output) const override;
  Slopes split(std::span<const float> output, std::span<float> output_gradient, const Slopes& room,
               bool apart) const override;

  Then then_;
};

}  // namespace lockstep
