#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/mpi/communicator.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

/// Which checkpoint a run went on from.
struct Restored {
  std::int64_t step = 0;
  std::string name;  ///< base name
};

/// Says that the arenas of a State are shared by the ranks of a node, so that one rank of each receives their
/// values.
struct SharedArenas {
  /// One rank of every node, the chief as its rank 0; nullopt on all other ranks.
  std::optional<Communicator> leaders;

  /// What of each slot this rank's node keeps, where optimizers are sharded; nullopt: all of it. The chief
  /// keeps all.
  std::optional<ElementRange> slots = std::nullopt;
  std::size_t node = 0;  ///< of State::kept_arenas, this rank's node keeps this one
};

struct RestoreOptions {
  std::set<std::string> allow_change = {};     ///< settings that may differ
  bool fresh = false;                          ///< set all checkpoints aside and start anew
  std::optional<std::string> exact_file = {};  ///< this base name and no other; what is newer is set aside
  std::string basename = std::string(kDefaultBasename);
  std::optional<SharedArenas> shared_arenas = {};  ///< nullopt: every rank has arenas of its own
  std::shared_ptr<const MacKey> key = {};          ///< only what was signed with it is read
  Log log = {};                                    ///< the chief's
};

/// Gives the tensors in `names`, and no others, the values that they have in the checkpoint at `path`
/// (tf.train.init_from_checkpoint): for an init_fn, so a run that goes on from checkpoints of its own is not
/// touched. See `restore_part` for the names. Chief only. Throws as `CheckpointFile` and `restore_part`.
void init_from_checkpoint(FileSystem& files, const std::filesystem::path& path,
                          const std::vector<std::string>& names, State& state, const Log& log = {},
                          const MacKey* key = nullptr);

/// Restores the newest checkpoint of `directory` that verifies into `state`.
///
/// Collective over `comm`: the chief reads and verifies, then every entry is broadcast in bounded pieces. No
/// other rank touches the file system. Same on all ranks: the names, shapes and order of `state`, and whether
/// arenas are shared.
///
/// On return all ranks hold the same values. The chief looks at the files by their names, highest step first;
/// the state file only adds names that a stale view of the directory does not show yet. One that fails is
/// passed over with a warning that names file and offset, and so is one from a job that had lost the
/// directory to a later one. After a good one was found, and not before, those that are damaged (not those
/// that could not be read: an error of the disk proves nothing) are renamed to NAME.damaged-K, and those that
/// were passed over or are newer than `exact_file` to NAME.superseded-K. Nothing is ever deleted.
///
/// Returns nullopt on all ranks, with `state` untouched, when the directory never had a checkpoint or `fresh`
/// was given. `directory` is null on all ranks but the chief. Throws on all ranks: DataError when there are
/// checkpoints and none verifies, or the state file names some and none is there; EnvironmentError when the
/// newest good one belongs to another model or other settings, with all differences; UsageError; FileError's
/// code when the directory cannot be read.
[[nodiscard]] std::optional<Restored> restore_latest(const Communicator& comm, Directory* directory,
                                                     State& state, const RestoreOptions& options = {});

/// As `restore_latest`; where that restores nothing, sets the step to 0, calls `initialize` on every rank,
/// and gives all ranks the values that the chief then has. Collective; `initialize` throws on all ranks or on
/// none (what only the chief does can stand in `on_chief`). What was restored, or nullopt.
std::optional<Restored> restore_or_initialize(const Communicator& comm, Directory* directory, State& state,
                                              const std::function<void()>& initialize,
                                              const RestoreOptions& options = {});

/// The second half of it alone: where there are no checkpoints.
void initialize_state(const Communicator& comm, State& state, const std::function<void()>& initialize,
                      const std::optional<SharedArenas>& shared_arenas = {});

}  // namespace lockstep
