#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <lockstep/checkpoint/saver.hpp>
#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Watches the saves of a CheckpointSaverHook (tf.train.CheckpointSaverListener). Chief only; must not
/// communicate.
class CheckpointSaverListener {
 public:
  virtual ~CheckpointSaverListener() = default;
  virtual void begin() {}
  virtual void before_save(std::int64_t /*step*/) {}

  /// The checkpoint of `step` has become durable. True asks all ranks to stop. Called at the start of a step
  /// after it did, or at the end; so all stop after that step.
  virtual bool after_save(std::int64_t /*step*/) { return false; }
  virtual void end(std::int64_t /*step*/) {}
};

/// Saves checkpoints at intervals of steps or seconds, whichever comes first (tf.train.CheckpointSaverHook):
/// when the session is created, unless that step was just restored; at intervals; and at a clean end.
///
/// Logically collective: every rank adds one with the same intervals; the chief alone has the saver. Whether
/// a save is due is the same on all ranks. The chief copies the values and goes on; writing goes on in the
/// background.
class CheckpointSaverHook final : public SessionRunHook {
 public:
  struct Options {
    std::optional<double> save_secs = std::nullopt;
    std::optional<std::int64_t> save_steps = std::nullopt;
    std::vector<std::shared_ptr<CheckpointSaverListener>> listeners = {};
    bool stop_on_failure = false;  ///< a failed save ends the run with exit code 74 instead of a warning

    /// The value of a step that is kept with its checkpoint, for SaverOptions::keep_best. A step that does
    /// not have it is an error on all ranks.
    std::string metric = {};
  };

  /// Neither interval, or one not above 0: UsageError.
  explicit CheckpointSaverHook(Options options);

  /// Session only, before after_create_session: the chief's saver (it opens the directory, so it is made when
  /// that is known) and the step that was restored.
  void attach(std::shared_ptr<Saver> saver, std::optional<std::int64_t> restored_step);

  std::string_view name() const override { return "checkpoint_saver"; }
  std::string describe() const override;
  void begin(RunContext& context) override;
  void after_create_session(RunContext& context) override;
  void before_run(RunContext& context) override;
  void after_run(RunContext& context, const RunValues& values) override;

  /// Chief: saves unless this step is saved, and waits until it is durable. Throws IoError if it is not.
  void end(RunContext& context) override;
  bool looks_last() const override { return true; }

  /// Chief: saves now and waits until it is durable; another rank does nothing. For a stop that may leave
  /// little time.
  void save_and_wait(RunContext& context);

  /// Chief: how long a slow save takes (see Saver); 0 on other ranks.
  Seconds slow_save() const { return saver_ ? saver_->slow_save() : Seconds{0}; }

  /// Session only: whether after_run will save after this step, as far as that follows from what all ranks
  /// know.
  bool saves_after(std::int64_t step, const Tally& tally) const;

  /// Session only: the state has changed since it was saved, though the step has not, so `end` saves again.
  void save_again() noexcept { saved_step_.reset(); }

 private:
  void note_metric(const RunValues& values);
  void save(RunContext& context);
  void settle(RunContext& context);
  void collect(RunContext& context);

  Options options_;
  SecondOrStepTimer timer_;
  std::shared_ptr<Saver> saver_;
  std::optional<std::int64_t> saved_step_;  ///< the newest step that was restored or whose save was started
  Metric metric_;                           ///< of the newest step
  std::exception_ptr failure_;              ///< of the newest save that has ended
  int running_ = 0;                         ///< saves whose result was not yet taken
};

}  // namespace lockstep
