#pragma once

#include <lockstep/nn/value_loss.hpp>

namespace lockstep {

/// The mean over a sample's values of |output - target|, also called L1.
class MeanAbsoluteError final : public ValueLoss {
 public:
  std::string describe() const override;

 private:
  double sum(std::span<const float> outputs, std::span<const float> targets, float scale,
             std::span<float> gradient) const override;
};

}  // namespace lockstep
