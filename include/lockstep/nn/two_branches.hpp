#pragma once

#include <string_view>

#include <lockstep/nn/chain.hpp>

namespace lockstep {

/// What Residual and Concatenate share: two chains with the same input, whose outputs become one. An empty
/// shortcut passes the input on. Parameters: those of the chains, as "main/..." and "shortcut/...".
class TwoBranches : public Layer {
 public:
  std::string describe() const override;
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  void initialize(const State& state, std::uint64_t seed) const override;
  std::unique_ptr<Plan> plan(const Kernels& kernels, std::int64_t samples) const override;
  std::size_t scratch_size(std::int64_t samples) const override;
  std::size_t room_size(std::int64_t samples) const override;
  std::int64_t flops_per_sample() const override;
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 protected:
  TwoBranches(Chain main, Chain shortcut);

  /// Gradients of what the two chains put out.
  struct Slopes {
    std::span<float> main;
    std::span<float> shortcut;
  };

 private:
  struct Places;

  virtual std::string_view joined_by() const = 0;  ///< for describe: " + "

  /// The shape of the whole output. Throws UsageError where the two do not go together.
  virtual Shape join(const Shape& main, const Shape& shortcut) = 0;
  virtual void join(std::span<const float> main, std::span<const float> shortcut,
                    std::span<float> output) const = 0;

  /// The other way. What is returned may be `room`, or `output_gradient`; for both chains only where they
  /// need not be `apart`.
  virtual Slopes split(std::span<const float> output, std::span<float> output_gradient, const Slopes& room,
                       bool apart) const = 0;

  Chain main_;
  Chain shortcut_;
  Shape input_;
  Shape main_output_;
  Shape shortcut_output_;
};

}  // namespace lockstep
