#pragma once

#include <lockstep/nn/chain.hpp>

namespace lockstep {

/// output = main(input) + shortcut(input), then max(x, 0) if wanted (He and others 2015). An empty shortcut
/// passes the input on. Parameters: those of the two chains, as "main/..." and "shortcut/...".
class Residual final : public Layer {
 public:
  enum class Then { nothing, relu };

  explicit Residual(Chain main, Chain shortcut = {}, Then then = Then::nothing);

  std::string_view kind() const noexcept override { return "residual"; }
  std::string describe() const override;

  /// Throws UsageError when the two give different shapes.
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  void initialize(const State& state, std::uint64_t seed) const override;
  std::unique_ptr<Plan> plan(const Kernels& kernels, std::int64_t samples) const override;
  std::size_t scratch_size(std::int64_t samples) const override;
  std::int64_t flops_per_sample() const override;
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 private:
  struct Places;

  Chain main_;
  Chain shortcut_;
  Then then_;
  Shape input_;
  Shape output_;
};

}  // namespace lockstep
