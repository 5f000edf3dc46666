#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
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
  float gradient_scale = 1;  ///< gradients are multiplied by it first (clipping by norm)...
  float clip_value = std::numeric_limits<float>::infinity();  ///< ...then cut to -clip_value ... clip_value
  float weight_decay = 0;  ///< for layerwise optimizers, in whose norms it takes part; see decay_weights
  float trust_ratio = 1;   ///< of the tensor, for layerwise optimizers
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

/// Sums of squares over part of a tensor or all of it.
struct SquareSums {
  double parameters = 0;
  double update = 0;
};

/// An optimizer whose rate for each tensor follows from norms over the tensor. An update in two passes: first
/// `measure`, part by part, on every element; then `apply` with the trust ratio of the tensor.
class LayerwiseOptimizer : public Optimizer {
 public:
  /// First pass over `part` of one tensor; may advance slots. Local. Allocates nothing.
  virtual SquareSums measure(ElementRange part, std::span<const float> parameters,
                             std::span<const float> gradients, std::span<const std::span<float>> slots,
                             const StepScalars& scalars) const = 0;

  /// From the sums over the whole tensor.
  virtual float trust_ratio(const SquareSums& sums, const StepScalars& scalars) const = 0;
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

/// Nesterov's momentum in the form of Sutskever and others (2013): v = momentum * v + g,
/// p = p - rate * (g + momentum * v)
class Nesterov final : public Optimizer {
 public:
  explicit Nesterov(float momentum = 0.9F);
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

/// Hinton's RMSProp: s = decay * s + (1 - decay) g^2, p = p - rate * g / (sqrt(s) + epsilon)
class RmsProp final : public Optimizer {
 public:
  explicit RmsProp(float decay = 0.99F, float epsilon = 1e-8F);
  std::string describe() const override;
  std::vector<std::string> slot_names() const override { return {"mean_square"}; }
  void apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
             std::span<const std::span<float>> slots, const StepScalars& scalars) const override;

 private:
  float decay_;
  float epsilon_;
};

/// Duchi, Hazan and Singer's Adagrad: s = s + g^2, p = p - rate * g / (sqrt(s) + epsilon)
class Adagrad final : public Optimizer {
 public:
  explicit Adagrad(float epsilon = 1e-10F);
  std::string describe() const override;
  std::vector<std::string> slot_names() const override { return {"sum_of_squares"}; }
  void apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
             std::span<const std::span<float>> slots, const StepScalars& scalars) const override;

 private:
  float epsilon_;
};

/// LARS (You, Gitman and Ginsburg 2017), momentum with a rate for each tensor:
/// ratio = trust * |p| / (|g| + decay * |p|), v = momentum * v + ratio * (g + decay * p), p = p - rate * v
class Lars final : public LayerwiseOptimizer {
 public:
  explicit Lars(float momentum = 0.9F, float trust = 0.001F);
  std::string describe() const override;
  std::vector<std::string> slot_names() const override { return {"velocity"}; }
  SquareSums measure(ElementRange part, std::span<const float> parameters, std::span<const float> gradients,
                     std::span<const std::span<float>> slots, const StepScalars& scalars) const override;
  float trust_ratio(const SquareSums& sums, const StepScalars& scalars) const override;
  void apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
             std::span<const std::span<float>> slots, const StepScalars& scalars) const override;

 private:
  float momentum_;
  float trust_;
};

/// LAMB (You and others 2019), Adam with a rate for each tensor: u = m / (sqrt(v) + epsilon) + decay * p with
/// m and v as Adam corrects them, p = p - rate * |p| / |u| * u
class Lamb final : public LayerwiseOptimizer {
 public:
  explicit Lamb(float beta1 = 0.9F, float beta2 = 0.999F, float epsilon = 1e-6F);
  std::string describe() const override;
  std::vector<std::string> slot_names() const override { return {"m", "v"}; }
  SquareSums measure(ElementRange part, std::span<const float> parameters, std::span<const float> gradients,
                     std::span<const std::span<float>> slots, const StepScalars& scalars) const override;
  float trust_ratio(const SquareSums& sums, const StepScalars& scalars) const override;
  void apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
             std::span<const std::span<float>> slots, const StepScalars& scalars) const override;

 private:
  float beta1_;
  float beta2_;
  float epsilon_;
};

/// Decoupled weight decay (Loshchilov and Hutter 2019), before the update: p = p * (1 - rate * decay).
void decay_weights(ElementRange range, std::span<float> parameters, float rate, float decay) noexcept;

/// Norms are summed over blocks of the arena of this many elements, so that ranks can share the work and get
/// the same bits.
inline constexpr std::size_t kNormBlock = 4096;

/// What to multiply gradients with so that their norm is at most `limit`; 1 if it is already, NaN for NaN.
float clip_scale(double norm, double limit) noexcept;

}  // namespace lockstep
