#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Logs named values: "loss = 0.5, step = 10 (1.234 sec)" (tf.train.LoggingTensorHook). Counts runs of this
/// session, not global steps; the first run always logs, without the seconds.
///
/// Logically collective: every rank adds one. Only the chief logs.
class LoggingTensorHook final : public SessionRunHook {
 public:
  using Formatter = std::function<std::string(const StepValues&)>;

  struct Options {
    std::vector<std::string> values = {};  ///< names, in the order of the line ("step" is one); empty: all
    std::optional<std::int64_t> every_n_iter = std::nullopt;
    std::optional<double> every_n_secs = std::nullopt;
    bool at_end = false;
    Formatter formatter = {};  ///< makes the whole line
  };

  /// Exactly one interval, or at_end alone; else UsageError.
  explicit LoggingTensorHook(Options options);

  std::string_view name() const override { return "logging_tensor"; }
  std::string describe() const override;
  void begin(RunContext& context) override;

  /// Throws UsageError after the first run for a name that the step does not return.
  void after_run(RunContext& context, const RunValues& values) override;
  void end(RunContext& context) override;

 private:
  void check_names(const StepValues& values) const;
  void write(RunContext& context, std::optional<SecondOrStepTimer::Elapsed> elapsed) const;

  Options options_;
  std::optional<SecondOrStepTimer> timer_;
  std::int64_t runs_ = 0;
  StepValues last_;
  std::int64_t last_step_ = 0;
};

}  // namespace lockstep
