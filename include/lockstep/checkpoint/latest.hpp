#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/state_file.hpp>

namespace lockstep {

/// A checkpoint as its name and trailer have it; whether it verifies is not known yet.
struct Candidate {
  FoundCheckpoint checkpoint;
  std::string overtaken;  ///< why it is no part of the newest run, in words; empty: it is
};

/// What a directory offers to go on from.
struct Candidates {
  std::vector<Candidate> all;  ///< newest first; those that were overtaken behind all others
  std::size_t listed = 0;      ///< how many the state file names, there or not
};

/// Looks at names and trailers, highest step first; the state file only adds names that a stale view of the
/// directory does not show yet. A checkpoint counts as overtaken when an older one carries a larger fencing
/// token, or when a later owner of the directory did not know of it: then a job wrote it that had lost the
/// directory. Local; only reads. Throws FileError.
Candidates find_candidates(Directory& directory, const std::string& basename, const MacKey* key = nullptr);

/// The checkpoint that a run would go on from: the first candidate that verifies. Warns in `log` of each that
/// is passed over. Only reads, also beside a job that saves and deletes there. nullopt when there is none at
/// all. Throws DataError when there are some and none is good, and FileError. Local.
std::optional<CheckpointFile> newest_checkpoint(Directory& directory, const Log& log,
                                                const std::string& basename = std::string(kDefaultBasename),
                                                const MacKey* key = nullptr);

/// The path of that checkpoint (tf.train.latest_checkpoint, but of one that was verified), as above.
std::optional<std::filesystem::path> latest_checkpoint(
    FileSystem& files, const std::filesystem::path& directory, const Log& log = {},
    const std::string& basename = std::string(kDefaultBasename), const MacKey* key = nullptr);

}  // namespace lockstep
