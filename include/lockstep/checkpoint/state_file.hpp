#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/trailer.hpp>

namespace lockstep {

/// One checkpoint of a directory. The digest is that of its trailer.
struct CheckpointRecord {
  std::int64_t step = 0;
  std::string file;  ///< base name
  std::string digest;
  std::uint64_t bytes = 0;
  std::uint64_t token = 0;
  double time = 0;         ///< seconds since 1970 when it was saved
  bool preserved = false;  ///< kept beyond `max_to_keep`
  Metric metric = {};      ///< of `keep_best`

  friend bool operator==(const CheckpointRecord&, const CheckpointRecord&) = default;
};

/// What the trailer of a file says.
CheckpointRecord record_of(const std::string& file, const Trailer& trailer);

/// A checkpoint that is about to be deleted, or was.
struct RetiredCheckpoint {
  std::string file;
  std::string digest;

  friend bool operator==(const RetiredCheckpoint&, const RetiredCheckpoint&) = default;
};

/// The contents of checkpoint.json. A hint for people and for retention: what counts is the directory.
struct StateFile {
  std::vector<CheckpointRecord> checkpoints;  ///< oldest first
  std::optional<double> last_preserved;       ///< time of the last checkpoint that was preserved

  /// Fencing token of the owner that wrote this. What has a lower one and is neither listed nor retired here
  /// was written by a job that had lost the directory by then. 0 in a text that does not prove itself:
  /// nothing is passed over on the word of such a text.
  std::uint64_t token = 0;

  /// What is deleted once this is written. A job that dies before leaves them, and they are no work of a job
  /// that had lost the directory.
  std::vector<RetiredCheckpoint> retired = {};

  friend bool operator==(const StateFile&, const StateFile&) = default;
};

/// Sealed with a digest of what it says, and with `key` also signed.
std::string to_json(const StateFile& state, const MacKey* key = nullptr);

/// What a text says, or why it says nothing.
struct ParsedStateFile {
  std::optional<StateFile> state;
  std::string problem;  ///< set when there is no state
};

/// Any bytes at all are allowed; never throws. Names that are not plain base names make the whole text
/// refused. Where the seal is not that of the text, or with `key` the signature is not one of that key, it
/// still names checkpoints, and its token is 0.
ParsedStateFile parse_state_file(std::span<const std::byte> bytes, const MacKey* key = nullptr);

/// As it stands in `directory`; a missing one is a problem as well. Throws nothing but FileError.
ParsedStateFile read_state_file(Directory& directory, const MacKey* key = nullptr);

void write_state_file(Directory& directory, const StateFile& state, const MacKey* key = nullptr);

/// A file whose name is that of a checkpoint. Whether it is a good one is not known yet.
struct FoundCheckpoint {
  CheckpointName name;
  std::string file;
  std::uint64_t bytes = 0;
};

/// All of them, oldest first. Throws FileError.
std::vector<FoundCheckpoint> scan_checkpoints(Directory& directory, const std::string& basename);

/// The same, and those that `known` names and a look-up by name finds, though the listing has none of them:
/// on a network file system it may be older.
std::vector<FoundCheckpoint> scan_checkpoints(Directory& directory, const std::string& basename,
                                              const StateFile& known);

/// True when a later owner of the directory knew nothing of a file with this trailer, so that it is no part
/// of its run.
bool is_fenced(const StateFile& state, const std::string& file, const Trailer& trailer);

/// What the directory really holds: a record for every checkpoint whose trailer is whole and that is not
/// fenced, with what only the state file knows where that agrees. Says in `log` when the state file is
/// missing or does not. Throws FileError.
StateFile load_state(Directory& directory, const std::string& basename, const Log& log,
                     const MacKey* key = nullptr);

}  // namespace lockstep
