#include <cmath>
#include <cstddef>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/binary_cross_entropy.hpp>
#include <lockstep/nn/huber.hpp>
#include <lockstep/nn/mean_absolute_error.hpp>
#include <lockstep/nn/mean_squared_error.hpp>
#include <lockstep/nn/value_loss.hpp>

namespace lockstep {
namespace {

struct Term {
  double loss;
  float slope;  // with respect to the output
};

/// Adds the losses up in the order of the values.
template <class Function>
double add_terms(std::span<const float> outputs, std::span<const float> targets, float scale,
                 std::span<float> gradient, Function&& function) {
  double sum = 0;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const Term term = function(outputs[i], targets[i]);
    sum += term.loss;
    if (!gradient.empty()) gradient[i] = term.slope * scale;
  }
  return sum;
}

float sign(float x) {
  return x > 0 ? 1.0F : x < 0 ? -1.0F : x;  // keeps NaN
}

}  // namespace

void ValueLoss::check(const Shape&) const {}

Score ValueLoss::evaluate(std::int64_t samples, std::span<const float> outputs, const Targets& targets,
                          float scale, std::span<float> gradient) const {
  if (targets.values.size() != outputs.size()) {
    throw UsageError(fmt::format("{} target values were given for {} samples with {} outputs",
                                 targets.values.size(), samples, outputs.size()));
  }
  const auto each = static_cast<double>(outputs.size()) / static_cast<double>(samples);
  Score score;
  score.loss_sum = sum(outputs, targets.values, scale / static_cast<float>(each), gradient) / each;
  return score;
}

std::string MeanSquaredError::describe() const {
  return "mean squared error";
}

double MeanSquaredError::sum(std::span<const float> outputs, std::span<const float> targets, float scale,
                             std::span<float> gradient) const {
  return add_terms(outputs, targets, scale, gradient, [](float output, float target) {
    const float d = output - target;
    return Term{static_cast<double>(d) * static_cast<double>(d), 2.0F * d};
  });
}

std::string MeanAbsoluteError::describe() const {
  return "mean absolute error";
}

double MeanAbsoluteError::sum(std::span<const float> outputs, std::span<const float> targets, float scale,
                              std::span<float> gradient) const {
  return add_terms(outputs, targets, scale, gradient, [](float output, float target) {
    const float d = output - target;
    return Term{std::abs(static_cast<double>(d)), sign(d)};
  });
}

Huber::Huber(float delta) : delta_(delta) {
  if (!(delta > 0)) throw UsageError(fmt::format("the delta of a Huber loss is above 0 (got {})", delta));
}

std::string Huber::describe() const {
  return fmt::format("huber {}", delta_);
}

double Huber::sum(std::span<const float> outputs, std::span<const float> targets, float scale,
                  std::span<float> gradient) const {
  return add_terms(outputs, targets, scale, gradient, [delta = delta_](float output, float target) {
    const float d = output - target;
    const auto size = std::abs(static_cast<double>(d));
    const auto edge = static_cast<double>(delta);
    if (size > edge) return Term{edge * (size - 0.5 * edge), delta * sign(d)};
    return Term{0.5 * size * size, d};
  });
}

std::string BinaryCrossEntropy::describe() const {
  return "binary cross-entropy";
}

double BinaryCrossEntropy::sum(std::span<const float> outputs, std::span<const float> targets, float scale,
                               std::span<float> gradient) const {
  return add_terms(outputs, targets, scale, gradient, [](float output, float target) {
    if (!(target >= 0 && target <= 1)) {
      throw DataError(fmt::format("target {} is outside 0 to 1; check the data set", target));
    }
    // max(x, 0) - x t + log(1 + e^-|x|): never an overflow.
    const auto x = static_cast<double>(output);
    const double loss =
        (x < 0 ? 0.0 : x) - x * static_cast<double>(target) + std::log1p(std::exp(-std::abs(x)));
    return Term{loss, static_cast<float>(1.0 / (1.0 + std::exp(-x))) - target};
  });
}

}  // namespace lockstep
