#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Stops when a value of the step has not become better for a number of steps (Estimator's
/// stop_if_no_decrease_hook and stop_if_no_increase_hook).
///
/// Logically collective: every rank adds one, with the same options. Sends nothing: it looks at the step's
/// reduced values, which are the same on all ranks, so all stop after the same step. What it remembers is
/// part of the checkpoint: a run that is interrupted stops where one that is not would.
class EarlyStoppingHook final : public SessionRunHook {
 public:
  enum class Mode { min, max };

  struct Options {
    std::string metric = "loss";  ///< a value that the step returns
    std::int64_t patience = 0;    ///< stop when the best is so many steps old
    double min_delta = 0;         ///< better by no more than this is not better
    Mode mode = Mode::min;        ///< whether smaller or larger is better
  };

  /// A patience below 1, a min_delta below 0 or not finite, or an empty metric: UsageError.
  explicit EarlyStoppingHook(Options options);

  std::string_view name() const override { return "early_stopping"; }
  std::string describe() const override;
  void begin(RunContext& context) override;
  void after_create_session(RunContext& context) override;

  /// A value that is not a number is not better. Throws UsageError when the step returns no such value.
  void after_run(RunContext& context, const RunValues& values) override;

  bool needs_all_ranks() const override { return true; }

  double best() const { return kept_[kBest]; }  ///< Local; the same on all ranks. After `begin`.
  std::int64_t best_step() const { return static_cast<std::int64_t>(kept_[kBestStep]); }

 private:
  enum Kept { kSeen, kBest, kBestStep, kKept };  // in the order of the checkpoint

  void stop_if_stale(RunContext& context) const;

  Options options_;
  std::span<double> kept_;
};

}  // namespace lockstep
