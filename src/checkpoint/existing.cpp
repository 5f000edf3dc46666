#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/existing.hpp>
#include <lockstep/checkpoint/lock.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/shards.hpp>
#include <lockstep/checkpoint/state_file.hpp>
#include <lockstep/checkpoint/trailer.hpp>

namespace lockstep {
namespace {

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

bool is_absent(const FileError& error) {
  return error.code() == ENOENT || error.code() == ENOTDIR;
}

}  // namespace

std::optional<double> checkpoint_time(FileSystem& files, const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  try {
    const auto file = files.open_directory(folder_of(path))->open(name);
    return read_trailer(*file, name).saved_at;
  } catch (const DataError&) {
    return std::nullopt;
  } catch (const FileError& error) {
    // A link, or what is no plain file, is no checkpoint either.
    if (is_absent(error) || error.code() == ELOOP || error.code() == EINVAL) return std::nullopt;
    throw;
  }
}

bool checkpoint_exists(FileSystem& files, const std::filesystem::path& path) {
  return checkpoint_time(files, path).has_value();
}

bool remove_checkpoint(FileSystem& files, const std::filesystem::path& path, const Log& log,
                       const MacKey* key) {
  const std::string name = path.filename().string();
  if (!is_checkpoint_name(name)) {
    throw UsageError(fmt::format("'{}' is no name of a checkpoint, such as ckpt-00001200.h5", name));
  }
  std::unique_ptr<Directory> directory;
  try {
    directory = files.open_directory(folder_of(path));
  } catch (const FileError& error) {
    if (!is_absent(error)) throw;
  }
  if (directory && directory->exists(std::string(kLockFileName))) {
    const auto holder = read_lock(*directory);
    throw EnvironmentError(
        fmt::format("{} is not removed: its directory is owned by {}, which deletes by max_to_keep; or, if "
                    "that is gone, by "
                    "nobody once '{}' is removed",
                    name, holder ? describe(*holder) : "a job whose .lock cannot be read", kLockFileName));
  }
  if (!directory || !directory->exists(name)) {
    log.warn(fmt::format("'{}' is gone already", path.string()));
    return false;
  }
  // The state file first: it must never name what somebody removed on purpose.
  if (auto state = read_state_file(*directory, key).state) {
    const auto named = [&](const CheckpointRecord& record) { return record.file == name; };
    if (std::erase_if(state->checkpoints, named) > 0) write_state_file(*directory, *state, key);
  }
  std::vector<std::string> shards;
  try {
    shards = shards_of(*directory, name, key);
  } catch (const DataError&) {
    // What a damaged manifest named, the next owner of the directory removes.
  }
  directory->remove(name);
  directory->sync();
  for (const std::string& shard : shards) {
    if (directory->exists(shard)) directory->remove(shard);
  }
  if (!shards.empty()) directory->sync();
  return true;
}

}  // namespace lockstep
