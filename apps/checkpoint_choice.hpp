#pragma once

#include <memory>
#include <optional>
#include <string>

#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/reader.hpp>

namespace lockstep {

/// A checkpoint by its path: a file, or a directory, which stands for its newest one with `basename`. Throws
/// DataError when there is none. Local.
CheckpointFile open_checkpoint(FileSystem& files, const std::string& path, const Log& log,
                               const MacKey* key = nullptr,
                               const std::string& basename = std::string(kDefaultBasename));

/// The key of --key_file; null when none is given. Throws as MacKey::load. Local.
std::shared_ptr<const MacKey> load_key(FileSystem& files, const std::string& path);

/// The directory, or null when `path` is something else. DataError when nothing is there. Local.
std::unique_ptr<Directory> directory_or_null(FileSystem& files, const std::string& path);

/// The text of a setting ("model"), or nullopt. Local.
std::optional<std::string> setting_of(const CheckpointFile& file, const std::string& key);

}  // namespace lockstep
