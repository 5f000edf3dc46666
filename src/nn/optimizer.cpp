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
  const float* __restrict g = gradients.data();
  const float rate = scalars.learning_rate;
  const float scale = scalars.gradient_scale;
  for (std::size_t i = range.first; i < range.last; ++i) p[i] -= rate * (scale * g[i]);
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
  const float* __restrict g = gradients.data();
  const float rate = scalars.learning_rate;
  const float scale = scalars.gradient_scale;
  const float momentum = momentum_;
  for (std::size_t i = range.first; i < range.last; ++i) {
    v[i] = momentum * v[i] + scale * g[i];
    p[i] -= rate * v[i];
  }
}

Adam::Adam(float beta1, float beta2, float epsilon) : beta1_(beta1), beta2_(beta2), epsilon_(epsilon) {
  check_fraction("beta1 of Adam", beta1);
  check_fraction("beta2 of Adam", beta2);
  if (!(epsilon > 0.0F))
    throw UsageError(fmt::format("epsilon of Adam must be greater than 0 (got {})", epsilon));
}

std::string Adam::describe() const {
  return fmt::format("adam {} {} {}", beta1_, beta2_, epsilon_);
}

void Adam::apply(ElementRange range, std::span<float> parameters, std::span<const float> gradients,
                 std::span<const std::span<float>> slots, const StepScalars& scalars) const {
  float* __restrict p = parameters.data();
  float* __restrict m = slots[0].data();
  float* __restrict v = slots[1].data();
  const float* __restrict g = gradients.data();
  const auto updates = static_cast<double>(scalars.step + 1);
  const double first_correction = 1.0 - std::pow(static_cast<double>(beta1_), updates);
  const double second_correction = 1.0 - std::pow(static_cast<double>(beta2_), updates);
  const auto rate = static_cast<float>(static_cast<double>(scalars.learning_rate) / first_correction);
  const auto root = static_cast<float>(1.0 / std::sqrt(second_correction));
  const float scale = scalars.gradient_scale;
  const float beta1 = beta1_;
  const float beta2 = beta2_;
  const float rest1 = 1.0F - beta1_;
  const float rest2 = 1.0F - beta2_;
  const float epsilon = epsilon_;
  for (std::size_t i = range.first; i < range.last; ++i) {
    const float gradient = scale * g[i];
    m[i] = beta1 * m[i] + rest1 * gradient;
    v[i] = beta2 * v[i] + rest2 * (gradient * gradient);
    p[i] -= rate * (m[i] / (std::sqrt(v[i]) * root + epsilon));
  }
}

std::size_t norm_blocks(std::size_t elements) noexcept {
  return (elements + kNormBlock - 1) / kNormBlock;
}

void block_square_sums(std::span<const float> gradients, std::size_t first_block, std::size_t last_block,
                       std::span<double> sums) noexcept {
  for (std::size_t block = first_block; block < last_block; ++block) {
    const std::size_t begin = block * kNormBlock;
    const std::size_t size = std::min(kNormBlock, gradients.size() - begin);
    sums[block] = sum_of_squares(gradients.subspan(begin, size));
  }
}

double norm_from_blocks(std::span<const double> sums) noexcept {
  double total = 0;
  for (const double sum : sums) total += sum;
  return std::sqrt(total);
}

float clip_scale(double norm, double limit) noexcept {
  if (norm <= limit) return 1.0F;
  return static_cast<float>(limit / norm);
}

}  // namespace lockstep
