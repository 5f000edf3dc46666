#pragma once

#include <lockstep/nn/value_loss.hpp>

namespace lockstep {

/// The mean over a sample's values of -(t log p + (1 - t) log(1 - p)), where p = sigmoid(output) and the
/// target t is from 0 to 1; another throws DataError. The outputs are logits.
class BinaryCrossEntropy final : public ValueLoss {
 public:
  std::string describe() const override;

 private:
  double sum(std::span<const float> outputs, std::span<const float> targets, float scale,
             std::span<float> gradient) const override;
};

}  // namespace lockstep
