#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/latest.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/restore.hpp>
#include <lockstep/checkpoint/state_file.hpp>

namespace lockstep {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{16} << 20;

/// True when a file may be good although it could not be read; false for a link or folder in its place.
bool is_of_the_storage(const FileError& error) {
  constexpr std::array kCodes = {EIO, EACCES, EPERM, ESTALE, ETIMEDOUT, ENOMEM, EMFILE, ENFILE};
  return std::ranges::find(kCodes, error.code()) != kCodes.end();
}

/// The chief's part: finds, verifies and reads, and tidies up afterwards.
class Search {
 public:
  Search(Directory& directory, const State& state, const RestoreOptions& options)
      : directory_(directory), entries_(state.entries()), options_(options) {
    const Candidates candidates = find_candidates(directory, options.basename, options.key.get());
    found_ = candidates.all;
    listed_ = candidates.listed;
  }

  std::optional<Restored> run() {
    if (options_.fresh) {
      for (const Candidate& candidate : found_) superseded_.push_back(candidate.checkpoint.file);
      // First: a job killed in between must not leave a state file that names what is no longer there.
      forget_state_file();
      set_aside();
      if (!found_.empty()) {
        options_.log.warn(
            fmt::format("starting anew, as told: {} checkpoints were set aside", found_.size()));
      }
      return std::nullopt;
    }
    if (options_.exact_file) return restore_exact(*options_.exact_file);
    if (found_.empty()) return nothing_found();
    for (const Candidate& candidate : found_) {
      if (candidate.overtaken.empty()) continue;
      options_.log.warn(fmt::format("passing over {}: {}", candidate.checkpoint.file, candidate.overtaken));
    }
    // Those that were overtaken come last: better the work of such a job than none.
    for (const Candidate& candidate : found_) {
      if (auto restored = try_restore(candidate.checkpoint)) {
        if (candidate.overtaken.empty()) set_overtaken_aside();
        return finish(std::move(*restored));
      }
    }
    if (unreadable_) {
      throw IoError(
          fmt::format("none of the {} checkpoints in '{}' can be used, and some could not even be read:\n  "
                      "{}\nstart again when they can be",
                      found_.size(), directory_.path().string(), fmt::join(reasons_, "\n  ")));
    }
    throw DataError(
        fmt::format("none of the {} checkpoints in '{}' can be used:\n  {}\nrestore them from a copy, or "
                    "give --fresh to set "
                    "them aside and start anew",
                    found_.size(), directory_.path().string(), fmt::join(reasons_, "\n  ")));
  }

 private:
  void set_overtaken_aside() {
    for (const Candidate& candidate : found_) {
      if (!candidate.overtaken.empty()) superseded_.push_back(candidate.checkpoint.file);
    }
  }

  std::optional<Restored> nothing_found() const {
    if (listed_ > 0) {
      const auto hint = read_state_file(directory_).state.value_or(StateFile());
      for (const CheckpointRecord& record : hint.checkpoints) {
        if (parse_file_name(options_.basename, record.file) || !directory_.exists(record.file)) continue;
        throw DataError(
            fmt::format("'{}' has checkpoints such as {}, and none with the basename '{}'; give the basename "
                        "that they have or another directory, or --fresh to start anew beside them",
                        directory_.path().string(), record.file, options_.basename));
      }
      throw DataError(
          fmt::format("'{}' names {} checkpoints and none of them is in '{}'; bring them back, or give "
                      "--fresh to start anew",
                      kStateFileName, listed_, directory_.path().string()));
    }
    for (const DirectoryEntry& entry : directory_.list()) {
      if (!entry.name.ends_with(".h5") && !is_set_aside(entry.name)) continue;
      if (is_shard_name(options_.basename, entry.name)) continue;  // of a first save that was not completed
      options_.log.warn(
          fmt::format("no checkpoint named '{}-STEP.h5' is in the directory, so training starts at step "
                      "0; '{}' and the like are left alone",
                      options_.basename, entry.name));
      break;
    }
    return std::nullopt;
  }

  Restored restore_exact(const std::string& name) {
    if (!is_plain_name(name)) {
      throw UsageError(fmt::format("'{}' is not the name of a file in the checkpoint directory", name));
    }
    if (!directory_.exists(name)) {
      throw DataError(fmt::format("there is no '{}' in '{}'; lockstep-inspect lists what there is", name,
                                  directory_.path().string()));
    }
    const CheckpointFile file(directory_, name, options_.key.get());
    allowed_ = restore_into(file, entries_, options_.allow_change);
    // A name that was set aside, or any other, counts as older than the canonical one of its step.
    const auto parsed = parse_file_name(options_.basename, name);
    const CheckpointName own = parsed.value_or(CheckpointName{file.step(), -1});
    for (const auto& [checkpoint, overtaken] : found_) {
      if (checkpoint.name > own && checkpoint.file != name) superseded_.push_back(checkpoint.file);
    }
    return finish({file.step(), name});
  }

  std::optional<Restored> try_restore(const FoundCheckpoint& candidate) {
    try {
      const CheckpointFile file(directory_, candidate.file, options_.key.get());
      if (file.step() != candidate.name.step) {
        throw DataError(fmt::format("{} holds step {}: it was renamed", candidate.file, file.step()));
      }
      allowed_ = restore_into(file, entries_, options_.allow_change);
      return Restored{file.step(), candidate.file};
    } catch (const DataError& error) {
      failed(error);
      damaged_.push_back(candidate.file);
    } catch (const FileError& error) {
      failed(error);  // it keeps its name: what cannot be read today may be good tomorrow
      unreadable_ |= is_of_the_storage(error);
    }
    return std::nullopt;
  }

  void failed(const Error& error) {
    options_.log.warn(fmt::format("{}; trying the next older checkpoint", error.what()));
    reasons_.emplace_back(error.what());
  }

  Restored finish(Restored restored) {
    set_aside();
    for (const std::string& change : allowed_) options_.log.warn(change + ": going on with this run's");
    options_.log.info(fmt::format("restored checkpoint {} (step {})", restored.name, restored.step));
    return restored;
  }

  void set_aside() {
    for (const std::string& name : damaged_) {
      try {
        move_aside(name, damaged_name);
      } catch (const FileError& error) {
        // It stays in the way, and is passed over again next time.
        options_.log.warn(error.what());
      }
    }
    // These verify: left under their names they would win over this choice at the next start.
    for (const std::string& name : superseded_) move_aside(name, superseded_name);
    if (!damaged_.empty() || !superseded_.empty()) directory_.sync();
  }

  void forget_state_file() {
    const std::string name(kStateFileName);
    if (!directory_.exists(name)) return;
    directory_.remove(name);
    directory_.sync();
  }

  void move_aside(const std::string& name, std::string (*aside)(std::string_view, int)) {
    int k = 1;
    while (directory_.exists(aside(name, k))) ++k;
    directory_.rename(name, aside(name, k));
    options_.log.warn(fmt::format("{} is now {}", name, aside(name, k)));
  }

  Directory& directory_;
  std::vector<Entry> entries_;
  const RestoreOptions& options_;
  std::vector<Candidate> found_;  // newest first
  std::size_t listed_ = 0;
  std::vector<std::string> damaged_;
  std::vector<std::string> superseded_;
  std::vector<std::string> reasons_;
  bool unreadable_ = false;           // the storage failed, and the file may be good
  std::vector<std::string> allowed_;  // settings that differ and may
};

bool inside(std::span<const float> arena, const Entry& entry) {
  const std::less<const std::byte*> before;
  const auto bytes = std::as_bytes(arena);
  return !bytes.empty() && !before(entry.data, bytes.data()) &&
         before(entry.data, bytes.data() + bytes.size());
}

/// Of an arena that lies on some nodes in part: the part that is kept here. nullopt for all others.
std::optional<std::span<const float>> kept_part(const State& state, const SharedArenas& shared,
                                                const Entry& entry) {
  if (shared.slots) {
    for (const std::string& name : state.slot_names()) {
      const auto slot = state.slot_values(name);
      if (inside(slot, entry)) return slot.subspan(shared.slots->first, shared.slots->size());
    }
  }
  const auto arenas = state.kept_arenas();
  for (std::size_t n = 0; n < arenas.size(); ++n) {
    if (inside(arenas[n], entry)) return n == shared.node ? arenas[n] : arenas[n].first(0);
  }
  return std::nullopt;
}

bool in_an_arena(const State& state, const Entry& entry) {
  if (inside(state.parameters(), entry) || inside(state.buffers(), entry)) return true;
  return std::ranges::any_of(
             state.slot_names(),
             [&](const std::string& name) { return inside(state.slot_values(name), entry); }) ||
         std::ranges::any_of(state.kept_arenas(),
                             [&](std::span<const float> arena) { return inside(arena, entry); });
}

void broadcast_pieces(const Communicator& comm, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kPieceBytes));
    comm.broadcast(piece);
    bytes = bytes.subspan(piece.size());
  }
}

/// The same where only what lies in `kept` is to be written.
void broadcast_part(const Communicator& comm, std::span<std::byte> bytes, std::span<const std::byte> kept) {
  std::vector<std::byte> scratch(std::min(bytes.size(), kPieceBytes));
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kPieceBytes));
    const auto received = std::span(scratch).first(piece.size());
    comm.broadcast(received);
    const std::byte* const begin = piece.data();
    const std::byte* const end = begin + piece.size();
    const std::byte* const first = std::clamp(kept.data(), begin, end);
    const std::byte* const last = std::clamp(kept.data() + kept.size(), first, end);
    std::copy_n(received.begin() + (first - begin), last - first, piece.begin() + (first - begin));
    bytes = bytes.subspan(piece.size());
  }
}

/// The chief's values reach all ranks.
void spread(const Communicator& comm, const State& state, const std::optional<SharedArenas>& shared_arenas,
            const char* what) {
  for (const Entry& entry : state.entries()) {
    if (entry.path.starts_with("/config/")) continue;
    const std::span bytes(entry.data, entry.bytes());
    if (!shared_arenas || !in_an_arena(state, entry)) {
      broadcast_pieces(comm, bytes);
      continue;
    }
    if (!shared_arenas->leaders) continue;
    const auto kept = kept_part(state, *shared_arenas, entry);
    if (kept && !comm.is_chief()) {
      broadcast_part(*shared_arenas->leaders, bytes, std::as_bytes(*kept));
    } else {
      broadcast_pieces(*shared_arenas->leaders, bytes);
    }
  }
  if (shared_arenas) comm.barrier(what);
}

}  // namespace

void init_from_checkpoint(FileSystem& files, const std::filesystem::path& path,
                          const std::vector<std::string>& names, State& state, const Log& log,
                          const MacKey* key) {
  const auto checkpoint = open_checkpoint_file(files, path, key);
  const std::size_t count = restore_part(checkpoint, state.entries(), names);
  log.info(fmt::format("{} tensors start with the values of {} (step {})", count, path.string(),
                       checkpoint.step()));
}

std::optional<Restored> restore_latest(const Communicator& comm, Directory* directory, State& state,
                                       const RestoreOptions& options) {
  // Where arenas are shared, the chief writes into those of its neighbours: they must be done with them.
  if (options.shared_arenas) comm.barrier("all ranks to come to the restore");
  std::optional<Restored> restored;
  on_chief(comm, "the chief to restore", [&] {
    if (directory == nullptr) throw InternalError("restore_latest needs a directory on the chief");
    restored = Search(*directory, state, options).run();
  });
  std::int64_t step = restored ? restored->step : -1;
  comm.broadcast_values(std::span(&step, 1));
  if (step < 0) return std::nullopt;
  const std::string name = comm.broadcast_text(restored ? restored->name : "");

  spread(comm, state, options.shared_arenas, "the restored values to reach all nodes");
  return Restored{step, name};
}

void initialize_state(const Communicator& comm, State& state, const std::function<void()>& initialize,
                      const std::optional<SharedArenas>& shared_arenas) {
  state.set_global_step(0);
  initialize();
  spread(comm, state, shared_arenas, "the first values to reach all nodes");
}

std::optional<Restored> restore_or_initialize(const Communicator& comm, Directory* directory, State& state,
                                              const std::function<void()>& initialize,
                                              const RestoreOptions& options) {
  auto restored = restore_latest(comm, directory, state, options);
  if (!restored) initialize_state(comm, state, initialize, options.shared_arenas);
  return restored;
}

}  // namespace lockstep
