#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/state/arena.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

/// What an update needs beside the arenas. The same on all ranks.
struct StepScalars {
  float learning_rate = 0;
  std::int64_t step = 0;     ///< the global step before this update: 0 for the first
  float gradient_scale = 1;  ///< gradients are multiplied by it first (clipping)
};

/// Turns gradients into new parameters, element by element: the bits of an element do not depend on how the
/// arena is cut into ranges, so ranks and threads may each update a part. Padding (zeros) stays zero.
class Optimizer {
 public:
  virtual ~Optimizer() = default;

  /// One line with all settings, kept in checkpoints: "momentum 0.9".
  virtual std::string describe() const = 0;

  /// Names of its slots, each an arena like that of the parameters.
  virtual std::vector<std::string> slot_names() const { return {}; }

  /// Local. Updates parameters and slots in `range`. All spans are whole arenas; `slots` are in the order of
  /// `slot_names`. Allocates nothing.
  virtual void apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
                     std::span<const std::span<float>> slots, const StepScalars& scalars) const = 0;

  /// Declares the slots. Before the State is frozen.
  void declare(State& state) const;

  /// The arenas of the slots, for `apply`. After the State is frozen.
  std::vector<std::span<float>> slots(const State& state) const;
};

/// p = p - rate * g
class Sgd final : public Optimizer {
 public:
  std::string describe() const override { return "sgd"; }
  void apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
             std::span<const std::span<float>> slots, const StepScalars& scalars) const override;
};

/// v = momentum * v + g, p = p - rate * v
class Momentum final : public Optimizer {
 public:
  explicit Momentum(float momentum = 0.9F);
  std::string describe() const override;
  std::vector<std::string> slot_names() const override { return {"velocity"}; }
  void apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
             std::span<const std::span<float>> slots, const StepScalars& scalars) const override;

 private:
  float momentum_;
};

/// Kingma and Ba's Adam: m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, both corrected for their
/// zero start, p = p - rate * m / (sqrt(v) + epsilon).
class Adam final : public Optimizer {
 public:
  explicit Adam(float beta1 = 0.9F, float beta2 = 0.999F, float epsilon = 1e-8F);
  std::string describe() const override;
  std::vector<std::string> slot_names() const override { return {"m", "v"}; }
  void apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
             std::span<const std::span<float>> slots, const StepScalars& scalars) const override;

 private:
  float beta1_;
  float beta2_;
  float epsilon_;
};

/// Norms are summed over fixed blocks of the arena, so that ranks can share the work and get the same bits.
inline constexpr std::size_t kNormBlock = 4096;

/// Number of blocks of an arena of `elements`; the last may be short.
std::size_t norm_blocks(std::size_t elements) noexcept;

/// Writes the sum of squares of each block in [first_block, last_block) of `gradients`, a whole arena, into
/// `sums`, which has room for all blocks of the arena. Local.
void block_square_sums(std::span<const float> gradients, std::size_t first_block, std::size_t last_block,
                       std::span<double> sums) noexcept;

/// The norm of the whole arena from all blocks, added from the first to the last.
double norm_from_blocks(std::span<const double> sums) noexcept;

/// What to multiply gradients with so that their norm is at most `limit`; 1 if it is already, NaN for NaN.
float clip_scale(double norm, double limit) noexcept;

}  // namespace lockstep
