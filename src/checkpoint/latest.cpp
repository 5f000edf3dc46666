#include <algorithm>
#include <cerrno>
#include <functional>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/latest.hpp>

namespace lockstep {
namespace {

// A training that saves and deletes quickly can take a file away between listing and opening it.
constexpr int kAttempts = 5;

}  // namespace

Candidates find_candidates(Directory& directory, const std::string& basename, const MacKey* key) {
  const ParsedStateFile hint = read_state_file(directory, key);
  auto found = scan_checkpoints(directory, basename, hint.state.value_or(StateFile{}));
  Candidates result;
  if (hint.state) result.listed = hint.state->checkpoints.size();
  std::ranges::sort(found, std::greater{}, &FoundCheckpoint::name);

  std::map<std::string, Trailer> trailers;
  for (const FoundCheckpoint& checkpoint : found) {
    try {
      trailers[checkpoint.file] = read_trailer(*directory.open(checkpoint.file), checkpoint.file);
    } catch (const Error&) {
      // Told when its turn comes.
    }
  }
  const auto overtaken = [&](const FoundCheckpoint& candidate) -> std::string {
    const auto own = trailers.find(candidate.file);
    if (own == trailers.end()) return "";
    for (const FoundCheckpoint& other : found) {
      const auto its = trailers.find(other.file);
      if (other.name < candidate.name && its != trailers.end() && its->second.token > own->second.token) {
        return fmt::format("a job wrote it after it had lost the directory to the one that wrote {}",
                           other.file);
      }
    }
    if (hint.state && is_fenced(*hint.state, candidate.file, own->second)) {
      return "the last owner of the directory did not know of it: a job wrote it after it had lost the "
             "directory";
    }
    return "";
  };
  for (const FoundCheckpoint& checkpoint : found) result.all.push_back({checkpoint, overtaken(checkpoint)});
  std::stable_partition(result.all.begin(), result.all.end(),
                        [](const Candidate& candidate) { return candidate.overtaken.empty(); });
  return result;
}

std::optional<CheckpointFile> newest_checkpoint(Directory& directory, const Log& log,
                                                const std::string& basename, const MacKey* key) {
  for (int attempt = 0;; ++attempt) {
    std::vector<std::string> reasons;
    bool vanished = false;
    for (const Candidate& candidate : find_candidates(directory, basename, key).all) {
      const std::string& name = candidate.checkpoint.file;
      try {
        CheckpointFile file(directory, name, key);
        if (file.step() != candidate.checkpoint.name.step) {
          throw DataError(fmt::format("{} holds step {}: it was renamed", name, file.step()));
        }
        return file;
      } catch (const FileError& error) {
        if (error.code() == ENOENT) vanished = true;
        reasons.emplace_back(error.what());
      } catch (const DataError& error) {
        // Its shards go after it: a reader that was slow finds it without them.
        if (!directory.exists(name)) vanished = true;
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

std::optional<std::filesystem::path> latest_checkpoint(FileSystem& files,
                                                       const std::filesystem::path& directory, const Log& log,
                                                       const std::string& basename, const MacKey* key) {
  const auto newest = newest_checkpoint(*files.open_directory(directory), log, basename, key);
  if (!newest) return std::nullopt;
  return directory / newest->name();
}

}  // namespace lockstep
