#pragma once

#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// Multi-head attention of each position over itself and those before it (Vaswani and others 2017): samples
/// [positions, 3 * width] hold queries, keys and values side by side, as one Dense makes them; outputs are
/// [positions, width]. Head h uses features h * width / heads and following of each of the three.
///
/// Works on groups of queries, and keeps two numbers a position and head from forward to backward, as Dao and
/// others do (2022): memory is linear in the number of positions.
class CausalAttention final : public Layer {
 public:
  /// Throws UsageError for less than 1 head.
  explicit CausalAttention(std::int64_t heads);

  std::string_view kind() const noexcept override { return "attention"; }
  std::string describe() const override;

  /// Throws UsageError for an input of other than 2 dimensions, or of features that are no multiple of
  /// 3 * heads.
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  std::unique_ptr<Plan> plan(const Kernels& kernels, std::int64_t samples) const override;
  std::size_t scratch_size(std::int64_t samples) const override;
  std::size_t room_size(std::int64_t samples) const override;
  std::int64_t flops_per_sample() const override;
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 private:
  template <class Work>
  void for_heads(const Pass& pass, std::span<float> scratch, Work&& work) const;

  std::int64_t heads_;
  std::int64_t positions_ = 0;
  std::int64_t width_ = 0;
  std::int64_t head_ = 0;  // features of a head
};

}  // namespace lockstep
