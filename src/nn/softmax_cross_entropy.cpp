#include <cmath>
#include <cstddef>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/softmax_cross_entropy.hpp>

namespace lockstep {
namespace {

std::size_t checked_label(std::span<const std::int32_t> labels, std::size_t sample, std::size_t classes) {
  const std::int32_t label = labels[sample];
  if (label < 0 || static_cast<std::size_t>(label) >= classes) {
    throw DataError(
        fmt::format("label {} of sample {} in its micro-batch is outside 0..{}; check the data set, or "
                    "give the model one output for each class",
                    label, sample, classes - 1));
  }
  return static_cast<std::size_t>(label);
}

std::size_t index_of_largest(const float* values, std::size_t count) noexcept {
  std::size_t best = 0;
  for (std::size_t j = 1; j < count; ++j) {
    if (values[j] > values[best]) best = j;
  }
  return best;
}

}  // namespace

void SoftmaxCrossEntropy::check(const Shape& output) const {
  if (output.size() != 1) {
    throw UsageError(
        fmt::format("softmax cross-entropy needs one logit for each class (the model's output has "
                    "shape {}); end the model with a dense layer",
                    to_string(output)));
  }
}

Score SoftmaxCrossEntropy::evaluate(std::int64_t samples, std::span<const float> outputs,
                                    const Targets& targets, float scale, std::span<float> gradient) const {
  const auto count = static_cast<std::size_t>(samples);
  if (targets.labels.size() != count) {
    throw UsageError(fmt::format("{} labels were given for {} samples", targets.labels.size(), samples));
  }
  const std::size_t classes = outputs.size() / count;
  Score score;
  for (std::size_t i = 0; i < count; ++i) {
    const float* logits = outputs.data() + i * classes;
    const std::size_t label = checked_label(targets.labels, i, classes);
    const std::size_t largest = index_of_largest(logits, classes);
    const float top = logits[largest];
    double sum = 0;
    for (std::size_t j = 0; j < classes; ++j) sum += std::exp(logits[j] - top);
    const double loss = std::log(sum) - (static_cast<double>(logits[label]) - static_cast<double>(top));
    score.loss_sum += loss;
    if (largest == label && !std::isnan(loss)) ++score.correct;
    if (gradient.empty()) continue;
    const auto per_sum = static_cast<float>(1.0 / sum);
    float* out = gradient.data() + i * classes;
    for (std::size_t j = 0; j < classes; ++j) out[j] = std::exp(logits[j] - top) * per_sum * scale;
    out[label] = (std::exp(logits[label] - top) * per_sum - 1.0F) * scale;
  }
  return score;
}

}  // namespace lockstep
