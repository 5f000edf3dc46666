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

/// rate * factor for every `every` steps that have passed.
class StepDecay final : public Schedule {
 public:
  /// Throws UsageError unless `rate` is as for ConstantRate, `every` at least 1 and `factor` from 0 to 1.
  StepDecay(float rate, std::int64_t every, double factor);
  float learning_rate(std::int64_t step) const override;
  std::string describe() const override;

 private:
  float rate_;
  std::int64_t every_;
  double factor_;
};

/// rate * factor^(step / every), smoothly.
class ExponentialDecay final : public Schedule {
 public:
  /// Throws UsageError as StepDecay, and for a factor of 0.
  ExponentialDecay(float rate, std::int64_t every, double factor);
  float learning_rate(std::int64_t step) const override;
  std::string describe() const override;

 private:
  float rate_;
  std::int64_t every_;
  double factor_;
};

/// From `rate` down to `end` along half a cosine in `steps` steps, then `end` (Loshchilov and Hutter 2017).
class CosineDecay final : public Schedule {
 public:
  /// Throws UsageError unless the rates are as for ConstantRate and `steps` is at least 1.
  CosineDecay(float rate, std::int64_t steps, float end = 0);
  float learning_rate(std::int64_t step) const override;
  std::string describe() const override;

 private:
  float rate_;
  std::int64_t steps_;
  float end_;
};

/// From `rate` down to `end` as (1 - step / steps)^power, then `end`. A power of 1 is a straight line.
class PolynomialDecay final : public Schedule {
 public:
  /// Throws UsageError unless the rates are as for ConstantRate, `steps` at least 1 and `power` above 0.
  PolynomialDecay(float rate, std::int64_t steps, double power = 1, float end = 0);
  float learning_rate(std::int64_t step) const override;
  std::string describe() const override;

 private:
  float rate_;
  std::int64_t steps_;
  double power_;
  float end_;
};

/// Smith's one cycle: from rate / 25 up to `rate` in the first 30 % of `steps`, then down to rate / 250,000,
/// both along half a cosine.
class OneCycle final : public Schedule {
 public:
  /// Throws UsageError unless `rate` is as for ConstantRate and `steps` is at least 1.
  OneCycle(float rate, std::int64_t steps);
  float learning_rate(std::int64_t step) const override;
  std::string describe() const override;

 private:
  float rate_;
  std::int64_t steps_;
};

/// How a learning rate that was found with one global batch is carried over to another.
enum class BatchScaling { none, linear, square_root };

/// `rate` times (global_batch / base_batch), or its square root. Throws UsageError for batches below 1.
float scaled_rate(float rate, BatchScaling scaling, std::int64_t global_batch, std::int64_t base_batch);

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
