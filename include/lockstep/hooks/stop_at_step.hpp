#pragma once

#include <cstdint>
#include <optional>

#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Stops when the global step reaches a number (tf.train.StopAtStepHook). The test is also made before the
/// first step, so a run that is restarted at its end does nothing more.
///
/// Logically collective: every rank adds one, with the same number.
class StopAtStepHook final : public SessionRunHook {
 public:
  /// Exactly one of the two; both, none, or a number below 0: UsageError. `num_steps` counts from the step at
  /// which the session was created.
  explicit StopAtStepHook(std::optional<std::int64_t> num_steps,
                          std::optional<std::int64_t> last_step = std::nullopt);

  std::string_view name() const override { return "stop_at_step"; }
  std::string describe() const override;
  void after_create_session(RunContext& context) override;

  /// Local: the global step is the same on all ranks, so all take the same branch.
  void after_run(RunContext& context, const RunValues& values) override;

  bool needs_all_ranks() const override { return true; }

  std::optional<std::int64_t> last_step() const noexcept { return last_step_; }

 private:
  void stop_if_reached(RunContext& context, std::int64_t step) const;

  std::optional<std::int64_t> num_steps_;
  std::optional<std::int64_t> last_step_;
};

}  // namespace lockstep
