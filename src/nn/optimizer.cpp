#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/optimizer.hpp>

namespace lockstep {
namespace {

void check_fraction(const char* what, float value) {
  if (!(value >= 0.0F && value < 1.0F)) {
    throw UsageError(fmt::format("{} must be at least 0 and less than 1 (got {})", what, value));
  }
}

void check_positive(const char* what, float value) {
  if (!(value > 0.0F) || !std::isfinite(value)) {
    throw UsageError(fmt::format("{} must be greater than 0 (got {})", what, value));
  }
}

/// The gradient as the update sees it.
class Gradient {
 public:
  Gradient(std::span<const float> values, const StepScalars& scalars)
      : values_(values.data()), scale_(scalars.gradient_scale), limit_(scalars.clip_value) {}

  float operator[](std::size_t i) const noexcept {
    const float value = scale_ * values_[i];
    // In this form a NaN stays one.
    const float below = value > limit_ ? limit_ : value;
    return below < -limit_ ? -limit_ : below;
  }

 private:
  const float* __restrict values_;
  float scale_;
  float limit_;
};

/// Adam's corrections for slots that began at zero, as factors.
struct ZeroStart {
  ZeroStart(float beta1, float beta2, std::int64_t step)
      : mean(static_cast<float>(1.0 /
                                (1.0 - std::pow(static_cast<double>(beta1), static_cast<double>(step + 1))))),
        root(static_cast<float>(
            1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(beta2), static_cast<double>(step + 1))))) {}
  float mean;
  float root;
};

}  // namespace

void Optimizer::declare(State& state) const {
  for (const std::string& name : slot_names()) state.slot(name);
}

std::vector<std::span<float>> Optimizer::slots(const State& state) const {
  std::vector<std::span<float>> arenas;
  for (const std::string& name : slot_names()) arenas.push_back(state.slot_values(name));
  return arenas;
}

void Sgd::apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
                std::span<const std::span<float>>, const StepScalars& scalars) const {
  float* __restrict p = parameters.data();
  const Gradient g(gradients, scalars);
  const float rate = scalars.learning_rate;
  for (std::size_t i = range.first; i < range.last; ++i) p[i] -= rate * g[i];
}

Momentum::Momentum(float momentum) : momentum_(momentum) {
  check_fraction("momentum", momentum);
}

std::string Momentum::describe() const {
  return fmt::format("momentum {}", momentum_);
}

void Momentum::apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
                     std::span<const std::span<float>> slots, const StepScalars& scalars) const {
  float* __restrict p = parameters.data();
  float* __restrict v = slots[0].data();
  const Gradient g(gradients, scalars);
  const float rate = scalars.learning_rate;
  const float momentum = momentum_;
  for (std::size_t i = range.first; i < range.last; ++i) {
    v[i] = momentum * v[i] + g[i];
    p[i] -= rate * v[i];
  }
}

Nesterov::Nesterov(float momentum) : momentum_(momentum) {
  check_fraction("momentum", momentum);
}

std::string Nesterov::describe() const {
  return fmt::format("nesterov {}", momentum_);
}

void Nesterov::apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
                     std::span<const std::span<float>> slots, const StepScalars& scalars) const {
  float* __restrict p = parameters.data();
  float* __restrict v = slots[0].data();
  const Gradient g(gradients, scalars);
  const float rate = scalars.learning_rate;
  const float momentum = momentum_;
  for (std::size_t i = range.first; i < range.last; ++i) {
    const float gradient = g[i];
    v[i] = momentum * v[i] + gradient;
    p[i] -= rate * (gradient + momentum * v[i]);
  }
}

Adam::Adam(float beta1, float beta2, float epsilon) : beta1_(beta1), beta2_(beta2), epsilon_(epsilon) {
  check_fraction("beta1 of Adam", beta1);
  check_fraction("beta2 of Adam", beta2);
  check_positive("epsilon of Adam", epsilon);
}

std::string Adam::describe() const {
  return fmt::format("adam {} {} {}", beta1_, beta2_, epsilon_);
}

void Adam::apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
                 std::span<const std::span<float>> slots, const StepScalars& scalars) const {
  float* __restrict p = parameters.data();
  float* __restrict m = slots[0].data();
  float* __restrict v = slots[1].data();
  const Gradient g(gradients, scalars);
  const auto updates = static_cast<double>(scalars.step + 1);
  const double first_correction = 1.0 - std::pow(static_cast<double>(beta1_), updates);
  const double second_correction = 1.0 - std::pow(static_cast<double>(beta2_), updates);
  const auto rate = static_cast<float>(static_cast<double>(scalars.learning_rate) / first_correction);
  const auto root = static_cast<float>(1.0 / std::sqrt(second_correction));
  const float beta1 = beta1_;
  const float beta2 = beta2_;
  const float rest1 = 1.0F - beta1_;
  const float rest2 = 1.0F - beta2_;
  const float epsilon = epsilon_;
  for (std::size_t i = range.first; i < range.last; ++i) {
    const float gradient = g[i];
    m[i] = beta1 * m[i] + rest1 * gradient;
    v[i] = beta2 * v[i] + rest2 * (gradient * gradient);
    p[i] -= rate * (m[i] / (std::sqrt(v[i]) * root + epsilon));
  }
}

RmsProp::RmsProp(float decay, float epsilon) : decay_(decay), epsilon_(epsilon) {
  check_fraction("decay of RMSProp", decay);
  check_positive("epsilon of RMSProp", epsilon);
}

std::string RmsProp::describe() const {
  return fmt::format("rmsprop {} {}", decay_, epsilon_);
}

void RmsProp::apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
                    std::span<const std::span<float>> slots, const StepScalars& scalars) const {
  float* __restrict p = parameters.data();
  float* __restrict s = slots[0].data();
  const Gradient g(gradients, scalars);
  const float rate = scalars.learning_rate;
  const float decay = decay_;
  const float rest = 1.0F - decay_;
  const float epsilon = epsilon_;
  for (std::size_t i = range.first; i < range.last; ++i) {
    const float gradient = g[i];
    s[i] = decay * s[i] + rest * (gradient * gradient);
    p[i] -= rate * (gradient / (std::sqrt(s[i]) + epsilon));
  }
}

Adagrad::Adagrad(float epsilon) : epsilon_(epsilon) {
  check_positive("epsilon of Adagrad", epsilon);
}

std::string Adagrad::describe() const {
  return fmt::format("adagrad {}", epsilon_);
}

void Adagrad::apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
                    std::span<const std::span<float>> slots, const StepScalars& scalars) const {
  float* __restrict p = parameters.data();
  float* __restrict s = slots[0].data();
  const Gradient g(gradients, scalars);
  const float rate = scalars.learning_rate;
  const float epsilon = epsilon_;
  for (std::size_t i = range.first; i < range.last; ++i) {
    const float gradient = g[i];
    s[i] += gradient * gradient;
    p[i] -= rate * (gradient / (std::sqrt(s[i]) + epsilon));
  }
}

Lars::Lars(float momentum, float trust) : momentum_(momentum), trust_(trust) {
  check_fraction("momentum", momentum);
  check_positive("trust of LARS", trust);
}

std::string Lars::describe() const {
  return fmt::format("lars {} {}", momentum_, trust_);
}

SquareSums Lars::measure(ElementRange part, std::span<const float> parameters,
                         std::span<const float> gradients, std::span<const std::span<float>>,
                         const StepScalars& scalars) const {
  const Gradient g(gradients, scalars);
  const auto sum_of_gradients = sum_of_squares(part.size(), [&](std::size_t i) { return g[part.first + i]; });
  return {sum_of_squares(parameters.subspan(part.first, part.size())), sum_of_gradients};
}

float Lars::trust_ratio(const SquareSums& sums, const StepScalars& scalars) const {
  const double parameters = std::sqrt(sums.parameters);
  const double gradients = std::sqrt(sums.update);
  if (parameters == 0 || gradients == 0) return 1;
  return static_cast<float>(trust_ * parameters /
                            (gradients + static_cast<double>(scalars.weight_decay) * parameters));
}

void Lars::apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
                 std::span<const std::span<float>> slots, const StepScalars& scalars) const {
  float* __restrict p = parameters.data();
  float* __restrict v = slots[0].data();
  const Gradient g(gradients, scalars);
  const float rate = scalars.learning_rate;
  const float ratio = scalars.trust_ratio;
  const float decay = scalars.weight_decay;
  const float momentum = momentum_;
  for (std::size_t i = range.first; i < range.last; ++i) {
    v[i] = momentum * v[i] + ratio * (g[i] + decay * p[i]);
    p[i] -= rate * v[i];
  }
}

Lamb::Lamb(float beta1, float beta2, float epsilon) : beta1_(beta1), beta2_(beta2), epsilon_(epsilon) {
  check_fraction("beta1 of LAMB", beta1);
  check_fraction("beta2 of LAMB", beta2);
  check_positive("epsilon of LAMB", epsilon);
}

std::string Lamb::describe() const {
  return fmt::format("lamb {} {} {}", beta1_, beta2_, epsilon_);
}

SquareSums Lamb::measure(ElementRange part, std::span<const float> parameters,
                         std::span<const float> gradients, std::span<const std::span<float>> slots,
                         const StepScalars& scalars) const {
  const float* __restrict p = parameters.data();
  float* __restrict m = slots[0].data();
  float* __restrict v = slots[1].data();
  const Gradient g(gradients, scalars);
  const float rest1 = 1.0F - beta1_;
  const float rest2 = 1.0F - beta2_;
  for (std::size_t i = part.first; i < part.last; ++i) {
    const float gradient = g[i];
    m[i] = beta1_ * m[i] + rest1 * gradient;
    v[i] = beta2_ * v[i] + rest2 * (gradient * gradient);
  }
  const ZeroStart correction(beta1_, beta2_, scalars.step);
  const auto update = [&](std::size_t i) {
    const std::size_t at = part.first + i;
    return correction.mean * m[at] / (std::sqrt(v[at]) * correction.root + epsilon_) +
           scalars.weight_decay * p[at];
  };
  return {sum_of_squares(parameters.subspan(part.first, part.size())), sum_of_squares(part.size(), update)};
}

float Lamb::trust_ratio(const SquareSums& sums, const StepScalars&) const {
  const double parameters = std::sqrt(sums.parameters);
  const double update = std::sqrt(sums.update);
  if (parameters == 0 || update == 0) return 1;
  return static_cast<float>(parameters / update);
}

void Lamb::apply(ElementRange range, std::span<float> parameters, std::span<const float>,
                 std::span<const std::span<float>> slots, const StepScalars& scalars) const {
  float* __restrict p = parameters.data();
  const float* __restrict m = slots[0].data();
  const float* __restrict v = slots[1].data();
  const ZeroStart correction(beta1_, beta2_, scalars.step);
  const float rate = scalars.learning_rate * scalars.trust_ratio;
  const float decay = scalars.weight_decay;
  const float epsilon = epsilon_;
  for (std::size_t i = range.first; i < range.last; ++i) {
    p[i] -= rate * (correction.mean * m[i] / (std::sqrt(v[i]) * correction.root + epsilon) + decay * p[i]);
  }
}

void decay_weights(ElementRange range, std::span<float> parameters, float rate, float decay) noexcept {
  const float factor = 1.0F - rate * decay;
  for (float& value : parameters.subspan(range.first, range.size())) value *= factor;
}

float clip_scale(double norm, double limit) noexcept {
  if (norm <= limit) return 1.0F;
  return static_cast<float>(limit / norm);
}

}  // namespace lockstep
