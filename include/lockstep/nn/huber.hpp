#pragma once

#include <lockstep/nn/value_loss.hpp>

namespace lockstep {

/// The mean over a sample's values of d^2 / 2 where d = |output - target| is at most `delta`, and
/// delta * (d - delta / 2) beyond (Huber 1964).
class Huber final : public ValueLoss {
 public:
  /// Throws UsageError unless `delta` is above 0.
  explicit Huber(float delta = 1);

  std::string describe() const override;

 private:
  double sum(std::span<const float> outputs, std::span<const float> targets, float scale,
             std::span<float> gradient) const override;

  float delta_;
};

}  // namespace lockstep
