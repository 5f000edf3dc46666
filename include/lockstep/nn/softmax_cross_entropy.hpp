#pragma once

#include <lockstep/nn/loss.hpp>

namespace lockstep {

/// -log(softmax(outputs)[label]) for each sample. The outputs are logits [classes], the label is
/// 0..classes-1.
class SoftmaxCrossEntropy final : public Loss {
 public:
  std::string describe() const override { return "softmax cross-entropy"; }
  void check(const Shape& output) const override;
  Score evaluate(std::int64_t samples, std::span<const float> outputs, const Targets& targets, float scale,
                 std::span<float> gradient) const override;
};

}  // namespace lockstep
