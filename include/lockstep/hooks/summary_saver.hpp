#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Writes the step's values to the event file (tf.train.SummarySaverHook): after the first step, then at
/// intervals.
///
/// Logically collective: every rank adds one. Only the chief writes.
class SummarySaverHook final : public SessionRunHook {
 public:
  /// Writes more than the step's values; on the chief.
  using Write = std::function<void(SummaryWriter&, const State&, std::int64_t step)>;

  /// At least one interval; see SecondOrStepTimer for errors. `write` may be null.
  SummarySaverHook(std::optional<std::int64_t> save_steps, std::optional<double> save_secs = std::nullopt,
                   Write write = nullptr);

  std::string_view name() const override { return "summary_saver"; }
  std::string describe() const override { return "summary_saver " + timer_.describe(); }
  void begin(RunContext& context) override;
  void after_run(RunContext& context, const RunValues& values) override;
  void end(RunContext& context) override;
  void on_error(RunContext& context, const std::exception& error) override;

 private:
  SecondOrStepTimer timer_;
  Write write_;
  bool first_ = true;
};

}  // namespace lockstep
