#pragma once

#include <lockstep/nn/loss.hpp>

namespace lockstep {

/// -log(softmax(outputs)[label]). The outputs are logits [classes], with one label 0..classes-1 a sample, or
/// [..., classes], with a label for each position; the loss of a sample is then the mean over its positions.
/// With label smoothing s (Szegedy and others 2015), the wanted distribution is 1 - s for the label plus
/// s / classes for each class.
class SoftmaxCrossEntropy final : public Loss {
 public:
  /// Throws UsageError unless 0 <= label_smoothing < 1.
  explicit SoftmaxCrossEntropy(float label_smoothing = 0);

  std::string describe() const override;
  void check(const Shape& output) const override;
  Score evaluate(std::int64_t samples, std::span<const float> outputs, const Targets& targets, float scale,
                 std::span<float> gradient) const override;

 private:
  float smoothing_;
};

}  // namespace lockstep
