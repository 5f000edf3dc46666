#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <lockstep/base/clock.hpp>

namespace lockstep {

/// Triggers when so many steps or so many seconds have passed since it last did, whichever comes first; and
/// on the first question. It counts from the last trigger, so a late one shifts all later ones.
/// (tf.train.SecondOrStepTimer, which takes only one of the two intervals.)
///
/// By itself it reads its own clock. Once registered with a session (RunContext::agree_on), "seconds have
/// passed" is what the chief's clock said and the tally carried, so that it triggers at the same step on all
/// ranks.
class SecondOrStepTimer {
 public:
  /// Both intervals nullopt, or one of them not above 0: UsageError.
  SecondOrStepTimer(std::optional<double> every_secs, std::optional<std::int64_t> every_steps,
                    std::shared_ptr<const Clock> clock = std::make_shared<SystemClock>());

  bool should_trigger_for_step(std::int64_t step) const;

  struct Elapsed {
    Seconds seconds{0};
    std::int64_t steps = 0;
  };
  /// Notes a trigger; returns what has passed since the one before, nullopt at the first.
  std::optional<Elapsed> update_last_triggered_step(std::int64_t step);

  std::optional<std::int64_t> last_triggered_step() const noexcept { return last_step_; }
  void reset() noexcept;

  bool has_seconds() const noexcept { return every_secs_.has_value(); }

  /// "every 100 steps", "every 600 s".
  std::string describe() const;

  // For the session.
  bool seconds_passed(Seconds now) const noexcept {
    return last_step_ && now >= last_time_ + Seconds(*every_secs_);
  }
  void agree(bool seconds_passed) noexcept { agreed_ = seconds_passed; }
  void use_clock(std::shared_ptr<const Clock> clock) { clock_ = std::move(clock); }

 private:
  std::optional<double> every_secs_;
  std::optional<std::int64_t> every_steps_;
  std::shared_ptr<const Clock> clock_;
  std::optional<std::int64_t> last_step_;
  Seconds last_time_{0};
  std::optional<bool> agreed_;  ///< the tally's word; nullopt: not registered
};

}  // namespace lockstep
