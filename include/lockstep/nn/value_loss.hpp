#pragma once

#include <lockstep/nn/loss.hpp>

namespace lockstep {

/// A loss that compares each output with a value. To write your own, copy mean_squared_error.hpp.
class ValueLoss : public Loss {
 public:
  /// Any shape will do.
  void check(const Shape& output) const override;

  /// Throws UsageError unless there is a target for each output.
  Score evaluate(std::int64_t samples, std::span<const float> outputs, const Targets& targets, float scale,
                 std::span<float> gradient) const override;

 private:
  /// The sum of the losses of all values; `scale` times its derivative goes into `gradient`, unless empty.
  virtual double sum(std::span<const float> outputs, std::span<const float> targets, float scale,
                     std::span<float> gradient) const = 0;
};

}  // namespace lockstep
