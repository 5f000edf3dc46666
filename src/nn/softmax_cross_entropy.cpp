#include <algorithm>
#include <cmath>
#include <cstddef>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/softmax_cross_entropy.hpp>

namespace lockstep {
namespace {

// From here on exponentials are computed as vectors, in the memory of the gradient.
constexpr std::size_t kManyClasses = 32;

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

/// Whether the largest is that of `label`, and no earlier one is as large.
bool is_first_largest(std::span<const float> logits, std::size_t label, float top) noexcept {
  return logits[label] == top &&
         std::ranges::find(logits.first(label), top) == logits.begin() + static_cast<std::ptrdiff_t>(label);
}

}  // namespace

SoftmaxCrossEntropy::SoftmaxCrossEntropy(float label_smoothing) : smoothing_(label_smoothing) {
  if (!(label_smoothing >= 0 && label_smoothing < 1)) {
    throw UsageError(fmt::format("label smoothing is from 0 to below 1 (got {})", label_smoothing));
  }
}

std::string SoftmaxCrossEntropy::describe() const {
  return smoothing_ == 0 ? "softmax cross-entropy"
                         : fmt::format("softmax cross-entropy, label smoothing {}", smoothing_);
}

void SoftmaxCrossEntropy::check(const Shape& output) const {
  if (output.empty()) {
    throw UsageError(
        fmt::format("softmax cross-entropy needs one logit for each class (the model's output has "
                    "shape {}); end the model with a dense layer",
                    to_string(output)));
  }
}

Score SoftmaxCrossEntropy::evaluate(std::int64_t samples, std::span<const float> outputs,
                                    const Targets& targets, float scale, std::span<float> gradient) const {
  const std::size_t rows = targets.labels.size();  // a label for each
  if (rows == 0 || rows % static_cast<std::size_t>(samples) != 0 || outputs.size() % rows != 0) {
    throw UsageError(
        fmt::format("{} labels were given for {} samples with {} outputs", rows, samples, outputs.size()));
  }
  const std::size_t positions = rows / static_cast<std::size_t>(samples);
  const std::size_t classes = outputs.size() / rows;
  const double share = 1.0 / static_cast<double>(positions);
  const double smooth = static_cast<double>(smoothing_) / static_cast<double>(classes);
  Score score;
  score.judged = static_cast<std::int64_t>(rows);
  double sample_loss = 0;
  for (std::size_t i = 0; i < rows; ++i) {
    const std::span<const float> logits = outputs.subspan(i * classes, classes);
    const std::size_t label = checked_label(targets.labels, i, classes);
    const float top = largest(logits);
    double sum = 0;
    std::span<float> out;
    if (gradient.empty() || classes < kManyClasses) {
      for (const float logit : logits) sum += std::exp(logit - top);
    } else {
      out = gradient.subspan(i * classes, classes);
      std::ranges::copy(logits, out.begin());
      sum = static_cast<double>(exp_and_sum(out, top));
    }
    const double log_sum = std::log(sum) + static_cast<double>(top);
    double loss = log_sum - static_cast<double>(logits[label]);
    if (smoothing_ > 0) {
      double all = 0;
      for (const float logit : logits) all += log_sum - static_cast<double>(logit);
      loss = (1.0 - static_cast<double>(smoothing_)) * loss + smooth * all;
    }
    sample_loss += loss;
    if ((i + 1) % positions == 0) {
      score.loss_sum += sample_loss * share;
      sample_loss = 0;
    }
    if (is_first_largest(logits, label, top) && !std::isnan(loss)) ++score.correct;
    if (gradient.empty()) continue;
    const auto per_sum = static_cast<float>(1.0 / sum);
    const float each = positions == 1 ? scale : scale * static_cast<float>(share);
    const auto wanted_elsewhere = static_cast<float>(smooth);
    const float wanted = 1.0F - smoothing_ + wanted_elsewhere;
    if (out.empty()) {
      out = gradient.subspan(i * classes, classes);
      for (std::size_t j = 0; j < classes; ++j) out[j] = std::exp(logits[j] - top);
    }
    const float at_label = (out[label] * per_sum - wanted) * each;
    for (float& value : out) value = (value * per_sum - wanted_elsewhere) * each;
    out[label] = at_label;
  }
  return score;
}

}  // namespace lockstep
