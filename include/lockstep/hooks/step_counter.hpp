#pragma once

#include <cstdint>
#include <optional>

#include <lockstep/hooks/arrival_lag.hpp>
#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Writes and logs how many steps pass in a second (tf.train.StepCounterHook): the summary `global_step/sec`
/// at the second trigger and later ones; the first only sets the base. With several ranks also the summary
/// `arrival_lag/sec`, how long a rank waited for the last one in a step, and, where that is a tenth of
/// the time or more, words in the line that name the rank and its host. Warns,
/// five times at most, of a global step that stands still.
///
/// Logically collective: every rank adds one. Only the chief writes.
class StepCounterHook final : public SessionRunHook {
 public:
  /// At least one interval; see SecondOrStepTimer for errors.
  explicit StepCounterHook(std::optional<std::int64_t> every_n_steps = 100,
                           std::optional<double> every_n_secs = std::nullopt);

  std::string_view name() const override { return "step_counter"; }
  std::string describe() const override { return "step_counter " + timer_.describe(); }
  void begin(RunContext& context) override;
  void after_run(RunContext& context, const RunValues& values) override;

 private:
  SecondOrStepTimer timer_;
  ArrivalLag lag_;
  std::int64_t previous_ = -1;
  int warnings_ = 0;
};

}  // namespace lockstep
