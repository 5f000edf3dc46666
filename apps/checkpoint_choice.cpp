#include "checkpoint_choice.hpp"

#include <cerrno>
#include <filesystem>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/latest.hpp>
#include <lockstep/checkpoint/names.hpp>

namespace lockstep {

std::unique_ptr<Directory> directory_or_null(FileSystem& files, const std::string& path) {
  try {
    return files.open_directory(path);
  } catch (const FileError& error) {
    if (error.code() == ENOENT) {
      throw DataError(fmt::format("'{}' does not exist; give a checkpoint directory or a checkpoint", path));
    }
    if (error.code() != ENOTDIR) throw;
    return nullptr;
  }
}

CheckpointFile open_checkpoint(FileSystem& files, const std::string& path, const Log& log, const MacKey* key,
                               const std::string& basename) {
  const auto directory = directory_or_null(files, path);
  if (directory == nullptr) {
    return open_checkpoint_file(files, path, key);
  }
  auto newest = newest_checkpoint(*directory, log, basename, key);
  if (newest) return std::move(*newest);
  throw DataError(fmt::format("there is no checkpoint named '{}-STEP.h5' in '{}'", basename, path));
}

std::shared_ptr<const MacKey> load_key(FileSystem& files, const std::string& path) {
  return path.empty() ? nullptr : std::make_shared<const MacKey>(MacKey::load(files, path));
}

std::optional<std::string> setting_of(const CheckpointFile& file, const std::string& key) {
  const Entry* entry = file.find("/config/" + key);
  if (entry == nullptr || entry->type != ElementType::text) return std::nullopt;
  return std::string(reinterpret_cast<const char*>(entry->data), entry->bytes());
}

}  // namespace lockstep
