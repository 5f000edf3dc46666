#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace lockstep {

/// The learning rate as a pure function of the step, so that nothing needs to be saved or restored.
class Schedule {
 public:
  virtual ~Schedule() = default;

  /// `step` is the global step before the update: 0 for the first.
  virtual float learning_rate(std::int64_t step) const = 0;

  /// One line with all settings, kept in checkpoints.
  virtual std::string describe() const = 0;
};

class ConstantRate final : public Schedule {
 public:
  /// Throws UsageError unless `rate` is finite and not negative.
  explicit ConstantRate(float rate);
  float learning_rate(std::int64_t step) const override;
  std::string describe() const override;

 private:
  float rate_;
};

/// Another schedule, multiplied by (step + 1) / steps during the first `steps` updates.
class WarmUp final : public Schedule {
 public:
  /// Throws UsageError unless `steps` is at least 0.
  WarmUp(std::int64_t steps, std::unique_ptr<Schedule> then);
  float learning_rate(std::int64_t step) const override;
  std::string describe() const override;

 private:
  std::int64_t steps_;
  std::unique_ptr<Schedule> then_;
};

}  // namespace lockstep
