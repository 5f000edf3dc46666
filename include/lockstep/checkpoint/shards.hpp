#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/checkpoint/image.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/trailer.hpp>
#include <lockstep/state/entry.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

/// What of a state one shard holds. Shard 0 has the buffers and attached memory, too.
struct ShardPart {
  ElementRange elements;                                 ///< of the parameters and of each slot
  std::optional<std::size_t> kept_arena = std::nullopt;  ///< this one of State::kept_arenas, whole
};

/// What the manifest says of shards whatever is in them.
struct ShardTable {
  std::size_t count = 0;
  std::map<std::string, Shape> cut = {};  ///< shapes of the tensors that lie in pieces
  std::uint64_t bytes = 0;                ///< of all values
};

/// A state cut into the shards of a checkpoint. Entries point into the state.
struct CutState {
  ShardTable table;
  std::vector<Entry> manifest;             ///< what the chief alone keeps: session and settings
  std::vector<std::vector<Entry>> shards;  ///< of each part; none is for a part without values
};

/// `parts` cover all elements, in order and once, and all kept arenas. Local; the same on all ranks for the
/// same parts but for where the entries point.
CutState cut_into_shards(const State& state, std::span<const ShardPart> parts);

/// Writes one of the shards of each checkpoint; see docs/checkpoint_format.md. Every rank that owns a shard
/// has one. Local; called from one thread. `start` copies the values and returns, the rest runs in the
/// background. The entries and all references must outlive it.
class ShardWriter {
 public:
  struct Options {
    std::string basename = std::string(kDefaultBasename);
    int number = 0;           ///< of the shard
    std::uint64_t token = 0;  ///< fencing token of the job
    bool verify_after_write = true;
    std::shared_ptr<const MacKey> key = {};
  };

  ShardWriter(std::shared_ptr<Directory> directory, std::vector<Entry> entries, Options options, Clock& clock,
              Executor& executor);

  /// Waits for what is being written. It stays: the chief may have heard that all is well, where this rank
  /// heard nothing any more.
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  /// Writes the present values as a shard of the save with the nonce `save`. The one before must have been
  /// handed over or discarded.
  void start(std::int64_t step, std::uint64_t save);

  /// Not durable yet, and not failed.
  bool pending() const { return started_ && !worker_->idle(); }

  /// Returns when nothing is pending.
  void wait() { worker_->wait(); }

  /// Why the newest shard failed; empty when it did not. Not while it is pending.
  const std::string& problem() const noexcept { return problem_; }

  /// From now on the shard belongs to a manifest.
  void hand_over() noexcept { name_.clear(); }

  /// The newest shard will have no manifest: removes it.
  void discard() noexcept;

  const std::vector<Entry>& entries() const noexcept { return image_.entries(); }

 private:
  void write(std::int64_t step) noexcept;

  std::shared_ptr<Directory> directory_;
  CheckpointImage image_;
  Options options_;
  Clock& clock_;
  std::string name_;     ///< of the newest shard; empty: there is none, or it was handed over
  std::string problem_;  ///< written by the background task
  bool started_ = false;
  std::unique_ptr<Worker> worker_;  // last: its end waits for a task that uses everything above
};

/// The names of the shards that the checkpoint `file` has; none where it is whole by itself. Throws DataError
/// when it does not verify, and FileError. Local.
std::vector<std::string> shards_of(Directory& directory, const std::string& file,
                                   const MacKey* key = nullptr);

/// Removes shards that no checkpoint in the directory names, as a job leaves them that dies while it saves.
/// One whose step is that of a checkpoint that cannot be read stays. Returns their names. Throws FileError.
/// Local; only while nobody saves there.
std::vector<std::string> remove_orphaned_shards(Directory& directory, const std::string& basename,
                                                const MacKey* key = nullptr);

}  // namespace lockstep
