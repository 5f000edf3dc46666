#pragma once

#include <filesystem>
#include <optional>

#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/mac.hpp>

namespace lockstep {

// What can be asked of a checkpoint, or done to it, by its path. Local; any process may, also one that is no
// MPI program. Links are not followed.

/// True when `path` is a checkpoint that is whole as far as its trailer says; not every byte is read.
/// (tf.train.checkpoint_exists.) Throws FileError when the directory is there and cannot be read.
bool checkpoint_exists(FileSystem& files, const std::filesystem::path& path);

/// When it was saved, in seconds since 1970: by its trailer, so a copy does not make it newer
/// (tf.train.get_checkpoint_mtimes). nullopt when it does not exist in the sense above. Throws as above.
std::optional<double> checkpoint_time(FileSystem& files, const std::filesystem::path& path);

/// Removes a checkpoint, good or not, from its directory and from the state file
/// (tf.train.remove_checkpoint); durable on return. One that is gone already is a warning in `log`. False
/// when there was nothing to remove. Throws UsageError for what has no name of a checkpoint, EnvironmentError
/// when a job owns the directory (it deletes by `max_to_keep`), and FileError. `key`: with which the
/// directory is signed, if it is.
bool remove_checkpoint(FileSystem& files, const std::filesystem::path& path, const Log& log = {},
                       const MacKey* key = nullptr);

}  // namespace lockstep
