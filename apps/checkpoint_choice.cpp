#include "checkpoint_choice.hpp"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/state_file.hpp>

namespace lockstep {
namespace {

// A training that saves and deletes quickly can take a file away between listing and opening it.
constexpr int kAttempts = 5;

/// Newest first; those that an older checkpoint of a later owner overtakes come last, as for a restore.
std::vector<FoundCheckpoint> in_order(Directory& directory) {
  auto found = scan_checkpoints(directory, std::string(kDefaultBasename));
  std::reverse(found.begin(), found.end());
  std::map<std::string, std::uint64_t> tokens;
  for (const FoundCheckpoint& checkpoint : found) {
    try {
      tokens[checkpoint.file] = read_trailer(*directory.open(checkpoint.file), checkpoint.file).token;
    } catch (const Error&) {
      // Told when its turn comes.
    }
  }
  std::stable_partition(found.begin(), found.end(), [&](const FoundCheckpoint& candidate) {
    const auto own = tokens.find(candidate.file);
    return own == tokens.end() || std::none_of(found.begin(), found.end(), [&](const FoundCheckpoint& other) {
             const auto token = tokens.find(other.file);
             return other.name < candidate.name && token != tokens.end() && token->second > own->second;
           });
  });
  return found;
}

}  // namespace

std::optional<CheckpointFile> newest_checkpoint(Directory& directory, const Log& log) {
  for (int attempt = 0;; ++attempt) {
    std::vector<std::string> reasons;
    bool vanished = false;
    for (const FoundCheckpoint& candidate : in_order(directory)) {
      try {
        CheckpointFile file(directory, candidate.file);
        if (file.step() != candidate.name.step) {
          throw DataError(fmt::format("{} holds step {}: it was renamed", candidate.file, file.step()));
        }
        return file;
      } catch (const FileError& error) {
        if (error.code() == ENOENT) vanished = true;
        reasons.emplace_back(error.what());
      } catch (const DataError& error) {
        reasons.emplace_back(error.what());
      }
      log.warn(fmt::format("{}; trying the next older checkpoint", reasons.back()));
    }
    if (reasons.empty()) return std::nullopt;
    if (vanished && attempt < kAttempts) continue;
    throw DataError(fmt::format("none of the {} checkpoints in '{}' can be used:\n  {}", reasons.size(),
                                directory.path().string(), fmt::join(reasons, "\n  ")));
  }
}

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

CheckpointFile open_checkpoint(FileSystem& files, const std::string& path, const Log& log) {
  const auto directory = directory_or_null(files, path);
  if (directory == nullptr) {
    return CheckpointFile(*files.open_file(path), std::filesystem::path(path).filename().string());
  }
  auto newest = newest_checkpoint(*directory, log);
  if (newest) return std::move(*newest);
  throw DataError(fmt::format("there is no checkpoint in '{}'", path));
}

std::optional<std::string> setting_of(const CheckpointFile& file, const std::string& key) {
  const Entry* entry = file.find("/config/" + key);
  if (entry == nullptr || entry->type != ElementType::text) return std::nullopt;
  return std::string(reinterpret_cast<const char*>(entry->data), entry->bytes());
}

}  // namespace lockstep
