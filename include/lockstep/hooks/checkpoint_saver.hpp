#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <lockstep/checkpoint/saver.hpp>
#include <lockstep/checkpoint/shards.hpp>
#include <lockstep/hooks/session_run_hook.hpp>
#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// What a rank has to do with checkpoints that are written in shards.
struct ShardedSaves {
  Communicator comm;                    ///< of the session
  std::shared_ptr<ShardWriter> writer;  ///< null: this rank owns no shard
  std::uint64_t first_save = 0;         ///< nonce of the first save, the same on all ranks
};

/// Watches the saves of a CheckpointSaverHook (tf.train.CheckpointSaverListener). Chief only; must not
/// communicate.
class CheckpointSaverListener {
 public:
  virtual ~CheckpointSaverListener() = default;
  virtual void begin() {}
  virtual void before_save(std::int64_t /*step*/) {}

  /// The checkpoint of `step` has become durable. True asks all ranks to stop, unless it is the one that is
  /// saved when the session is created. Called at the start of a step after it did, at the end, or before a
  /// recovery; so all stop after that step.
  virtual bool after_save(std::int64_t /*step*/) { return false; }
  virtual void end(std::int64_t /*step*/) {}
};

/// Saves checkpoints at intervals of steps or seconds, whichever comes first (tf.train.CheckpointSaverHook):
/// when the session is created, unless that step was just restored; at intervals; and at a clean end.
///
/// Logically collective: every rank adds one with the same intervals; the chief alone has the saver. Whether
/// a save is due is the same on all ranks. The chief copies the values and goes on; writing goes on in the
/// background. In shards, every rank that owns one does so, and each ballot says how it goes (`speak`); a
/// save that is due while shards are being written is made at the first step after. Then `save_and_wait` and
/// `end` are collective.
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
  void attach(std::shared_ptr<Saver> saver, std::optional<std::int64_t> restored_step,
              std::optional<ShardedSaves> shards = std::nullopt);

  /// Session only: whether this rank's shard is on its way or has failed. Local.
  void speak(Tally& ballot) const;

  /// Session only, with the tally of every step: once no shard is on its way all ranks complete the save, or
  /// drop it. Collective where the tally says that a shard has failed.
  void hear(const Tally& tally);

  /// Session only: what this rank would write now.
  Digest content_here(RunContext& context) const;
  bool writes_shards() const noexcept { return shards_.has_value(); }

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

  /// Session only, before it lets go of the saver: waits for a save that is running; listeners hear of it.
  void tell_results(RunContext& context);

  /// Session only: the state has changed since it was saved, though the step has not, so `end` saves again.
  void save_again() noexcept { saved_step_.reset(); }

 private:
  bool is_due(std::int64_t step, const Tally& tally) const;
  void note_metric(const RunValues& values);
  void save(RunContext& context);
  void settle(RunContext& context);
  void settle_shards(RunContext& context);
  void wait(RunContext& context);
  void conclude(const std::string& problem);
  std::string problem_here() const;
  void collect(RunContext& context);

  Options options_;
  SecondOrStepTimer timer_;
  std::shared_ptr<Saver> saver_;
  std::optional<std::int64_t> saved_step_;  ///< the newest step that was restored or whose save was started
  std::int64_t created_step_ = -1;          ///< at the creation of the session
  Metric metric_;                           ///< of the newest step
  std::exception_ptr failure_;              ///< of the newest save that has ended
  int running_ = 0;                         ///< saves whose result was not yet taken

  std::optional<ShardedSaves> shards_;
  std::uint64_t saves_ = 0;      ///< begun in shards
  bool writing_shards_ = false;  ///< the same on all ranks, as is the next
  bool delayed_ = false;         ///< a save was due meanwhile
  bool shards_failed_ = false;   ///< the newest save; after settle_shards also: the present step is not saved
  std::string not_begun_;        ///< why this rank's part of the newest save did not begin
};

}  // namespace lockstep
