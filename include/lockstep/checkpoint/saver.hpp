#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/checkpoint/image.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/retention.hpp>
#include <lockstep/checkpoint/shards.hpp>
#include <lockstep/checkpoint/state_file.hpp>
#include <lockstep/checkpoint/trailer.hpp>
#include <lockstep/state/entry.hpp>

namespace lockstep {

class Manifest;

struct SaverOptions {
  int max_to_keep = 5;                       ///< 0: all
  double keep_checkpoint_every_n_hours = 0;  ///< 0: off
  std::optional<KeepBest> keep_best = {};    ///< beside these
  std::string basename = std::string(kDefaultBasename);
  std::uint64_t shard_bytes = std::uint64_t{1}
                              << 30;       ///< values of more bytes than these are written in shards
  bool verify_after_write = true;          ///< read every byte back before the checkpoint gets its name
  std::shared_ptr<const MacKey> key = {};  ///< what is saved is signed with it; null: not signed
};

/// How one save ended.
struct SaveResult {
  std::int64_t step = 0;
  std::string name;  ///< base name; empty when it failed before one was chosen
  std::uint64_t bytes = 0;
  Seconds seconds{0};        ///< from the snapshot to durable
  std::exception_ptr error;  ///< null: durable
  std::string message;       ///< what was logged

  bool ok() const noexcept { return error == nullptr; }
};

/// Writes checkpoints. `start` copies the values and returns; everything else runs in the background. A save
/// is acknowledged (logged, listed, told as a result) once it would survive a power cut, and only then are
/// older ones deleted. A save that fails leaves the earlier checkpoints as they are, says so, and does not
/// hinder the next.
///
/// With a table of shards it writes manifests (see docs/checkpoint_format.md): `start` only takes the values
/// of the manifest, and what becomes of the save is said by `commit` or `abandon`.
///
/// Chief only; must not communicate. Called from one thread. The entries and all references must outlive it.
class Saver {
 public:
  /// Lays out the image, reads which checkpoints there are, and removes temporary files that a dead job left.
  /// `token` is the one of the DirectoryLock that the caller holds, or 0 without one. Throws UsageError for
  /// options that make no sense, and FileError. With a token it also writes the state file: from then on
  /// nothing that an earlier owner still writes is taken for a part of this run.
  /// With `shards`, `entries` are those of the manifest.
  Saver(std::shared_ptr<Directory> directory, std::vector<Entry> entries, SaverOptions options, Clock& clock,
        Executor& executor, Log log, std::uint64_t token, ProcessIdentity& identity,
        std::optional<ShardTable> shards = std::nullopt);

  /// Waits for a running save. Its failure is in the log.
  ~Saver();
  Saver(const Saver&) = delete;
  Saver& operator=(const Saver&) = delete;

  /// Takes a snapshot of all entries, to be saved as `step`. Waits for a save that is still running, and says
  /// so. False when nothing is saved because a tensor has a number that is not finite, which the log names.
  /// `metric` is kept with it, for `keep_best`; `save` is the nonce that its shards have in their names.
  bool start(std::int64_t step, Metric metric = {}, std::uint64_t save = 0);

  /// Every shard of the save that was started is durable: writes the manifest, in the background.
  void commit();

  /// A shard of it has failed, so that the save has, too.
  void abandon(const std::string& reason);

  /// Returns when no save is running. Throws the failure of a save that neither this nor `take_result` has
  /// told yet.
  void wait();

  bool busy() const noexcept { return busy_.load(); }

  /// The oldest save that has ended and was not taken yet. Does not block.
  std::optional<SaveResult> take_result();

  /// How long a slow save (the 99th percentile so far) takes from snapshot to durable; before the first one a
  /// guess from the size.
  Seconds slow_save() const;

  /// The newest step that this saver has made durable.
  std::optional<std::int64_t> last_durable_step() const;

  /// What the directory holds, oldest first, as of the last save that ended.
  std::vector<CheckpointRecord> checkpoints() const;

  /// Size of what is in a checkpoint, nearly that of its files (for a probe of the directory).
  std::uint64_t image_bytes() const noexcept {
    return image_.bytes().size() + (shards_ ? shards_->bytes : 0);
  }

 private:
  /// A save whose shards are being written.
  struct Underway {
    Stamp stamp;
    std::uint64_t save = 0;
    Seconds started{0};
  };

  void take_in_shards(const Underway& save);
  void remove_shards(std::uint64_t save) noexcept;
  void fail(SaveResult& result, const std::exception& error);
  void run(const Stamp& stamp, std::uint64_t nonce, Seconds started, const Underway* sharded) noexcept;
  std::string publish(Stamp stamp, std::uint64_t nonce);
  bool holds_same(const FoundCheckpoint& existing, std::int64_t step);
  std::vector<std::string> shards_beside(const std::string& name);
  void check_owner() const;
  std::vector<std::string> note_saved(const std::string& current);
  void remove(const std::vector<std::string>& superseded);
  void remove_leftovers();
  void fence();

  std::shared_ptr<Directory> directory_;
  std::optional<ShardTable> shards_;
  std::unique_ptr<Manifest> manifest_;  ///< with shards; the image is then its
  CheckpointImage image_;
  const std::int64_t* global_step_ = nullptr;  // in the state, where it is among the entries
  SaverOptions options_;
  Clock& clock_;
  Log log_;
  std::uint64_t token_;
  ProcessIdentity& identity_;
  std::atomic<bool> busy_ = false;
  std::int64_t running_step_ = 0;
  std::optional<Underway> underway_;

  // Used by the background task while busy_, else by the caller.
  CheckpointRecord written_;
  bool rescan_ = false;
  bool named_ = false;  ///< the save that runs may have its name

  mutable std::mutex mutex_;  // guards what follows
  StateFile state_;
  std::deque<SaveResult> results_;
  std::vector<double> seconds_;  ///< of each save, in increasing order
  std::optional<std::int64_t> last_durable_step_;

  std::unique_ptr<Worker> worker_;  // last: its end waits for a task that uses everything above
};

}  // namespace lockstep
