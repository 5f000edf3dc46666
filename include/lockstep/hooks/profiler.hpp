#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <lockstep/base/files.hpp>
#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Writes now and then where the time of a step goes (tf.train.ProfilerHook): `timeline-STEP.json`, a trace
/// that Perfetto and chrome://tracing open, with one track a rank; and, for TensorBoard, the seconds that the
/// slowest rank spent in each phase, as `profile/PHASE`. Never of the first step, which is not like the
/// others.
///
/// Phases are those that the session knows (step, reduce, finish, every hook by its name) and those that the
/// step itself names (StepContext::trace). Clocks of ranks differ; the tracks are aligned where the ranks
/// have met in the step's reduction.
///
/// Logically collective: every rank adds one with the same intervals; which step is looked at is the same on
/// all ranks. Sends one message of a few hundred bytes a rank for each timeline. The chief alone writes; when
/// it cannot, it says so and training goes on.
class ProfilerHook final : public SessionRunHook {
 public:
  struct Options {
    std::optional<std::int64_t> save_steps = std::nullopt;
    std::optional<double> save_secs = std::nullopt;  ///< with both, whichever comes first
    std::filesystem::path output_dir = ".";          ///< created when there is something to write
    std::shared_ptr<FileSystem> files = std::make_shared<PosixFileSystem>();
  };

  /// Neither interval, or one not above 0: UsageError.
  explicit ProfilerHook(Options options);

  std::string_view name() const override { return "profiler"; }
  std::string describe() const override {
    return "profiler " + timer_.describe() + " into " + options_.output_dir.string();
  }
  void begin(RunContext& context) override;
  void before_run(RunContext& context) override;
  void after_run(RunContext& context, const RunValues& values) override;
  void end(RunContext& context) override;
  bool needs_all_ranks() const override { return true; }

  /// So that what other hooks do is in the profile.
  bool looks_last() const override { return true; }

 private:
  void write(RunContext& context, std::int64_t step, const std::vector<std::string>& texts) const;

  Options options_;
  SecondOrStepTimer timer_;
  Seconds created_{0};  ///< by the chief's clock
};

}  // namespace lockstep
