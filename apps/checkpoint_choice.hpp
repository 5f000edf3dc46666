#pragma once

#include <memory>
#include <optional>
#include <string>

#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/checkpoint/reader.hpp>

namespace lockstep {

/// The checkpoint that a training would go on from: the newest that verifies, less those of a job that had
/// lost the directory. Warns in `log` of each that is passed over. Only reads, also beside a job that saves
/// and deletes here. nullopt when there is none at all; throws DataError when there are some and none is
/// good. Local.
std::optional<CheckpointFile> newest_checkpoint(Directory& directory, const Log& log);

/// A checkpoint by its path: a file, or a directory, which stands for its newest one. Throws DataError when
/// there is none. Local.
CheckpointFile open_checkpoint(FileSystem& files, const std::string& path, const Log& log);

/// The directory, or null when `path` is something else. DataError when nothing is there. Local.
std::unique_ptr<Directory> directory_or_null(FileSystem& files, const std::string& path);

/// The text of a setting ("model"), or nullopt. Local.
std::optional<std::string> setting_of(const CheckpointFile& file, const std::string& key);

}  // namespace lockstep
