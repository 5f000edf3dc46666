#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/page_buffer.hpp>
#include <lockstep/checkpoint/trailer.hpp>
#include <lockstep/state/entry.hpp>

namespace lockstep {

/// A checkpoint of which every byte was verified before anything was read from it. What it holds is in the
/// index of its trailer, as our writer leaves it; HDF5 then sees nothing at all. Where there is no index HDF5
/// reads the structure of the verified image, which is refused if it holds anything but plain folders and
/// tensors inside the file. Values come from the verified memory.
///
/// A manifest is read with its shards, which are verified as well, as if everything were in one file.
///
/// Local. Holds everything in memory.
class CheckpointFile {
 public:
  static constexpr std::uint64_t kDefaultLimit = std::uint64_t{256} << 30;  ///< bytes of an image

  /// With `key`, only what was signed with it is read. Throws DataError saying what is wrong, at which offset
  /// and in which tensor, and FileError.
  CheckpointFile(Directory& directory, const std::string& name, const MacKey* key = nullptr,
                 std::uint64_t limit = kDefaultLimit);

  /// Its shards, if it has any, are in `shards`.
  CheckpointFile(ReadableFile& file, Directory& shards, const std::string& name, const MacKey* key = nullptr,
                 std::uint64_t limit = kDefaultLimit);

  /// A file by itself: DataError for a manifest.
  CheckpointFile(ReadableFile& file, const std::string& name, const MacKey* key = nullptr,
                 std::uint64_t limit = kDefaultLimit);

  const std::string& name() const noexcept { return name_; }
  std::int64_t step() const noexcept { return content_.trailer.step; }
  const Trailer& trailer() const noexcept { return content_.trailer; }

  /// Names of its shards; none where it is whole by itself.
  const std::vector<std::string>& shards() const noexcept { return shard_names_; }

  /// Of the file and its shards.
  std::uint64_t bytes() const noexcept { return bytes_; }

  /// What it holds, in the order of the paths. `data` points into this object and is not to be written to.
  const std::vector<Entry>& entries() const noexcept { return entries_; }

  /// Null when there is none of this path.
  const Entry* find(std::string_view path) const noexcept;

  /// Copies the values of an entry. Throws InternalError when there is none or `bytes` has another size.
  void read(std::string_view path, std::span<std::byte> bytes) const;

  /// Lets HDF5 read the structure, whose rules then hold for this file as well, and compares: what other
  /// programs find in the file is what is read here. Not of its shards: those are files by themselves. Throws
  /// DataError.
  void check_structure() const;

  /// As `content_digest` of the state that was saved. `prefix` picks a part ("/model/").
  Digest digest(std::string_view prefix = "/") const { return content_digest(entries_, prefix); }

 private:
  void read_structure();
  void join(Directory& directory, const MacKey* key, std::uint64_t limit);

  std::string name_;
  VerifiedImage content_;
  std::vector<Entry> entries_;
  std::vector<Entry> own_entries_;  ///< of a manifest: those in the file itself
  std::vector<std::string> shard_names_;
  std::vector<VerifiedImage> shards_;
  std::vector<PageBuffer> joined_;  ///< tensors that lie in pieces
  std::uint64_t bytes_ = 0;
};

/// The checkpoint at `path`, whose last part may be a link. Throws as `CheckpointFile`. Local.
CheckpointFile open_checkpoint_file(FileSystem& files, const std::filesystem::path& path,
                                    const MacKey* key = nullptr);

/// Writes the values of `file` to where `entries` points. Settings ("/config/") are compared and not written.
///
/// Before the first byte is written, everything is compared: names, types, shapes and settings. Throws
/// EnvironmentError with the full list of what is missing, extra or different; settings named in
/// `allow_change` ("learning_rate") and what hooks keep may differ, be missing or extra, and what does is
/// returned, a line each. Local.
std::vector<std::string> restore_into(const CheckpointFile& file, std::span<const Entry> entries,
                                      const std::set<std::string>& allow_change = {});

/// Writes a part of `file`: `names` are paths ("/model/dense0/weight") or, with a slash at the end, folders
/// ("/model/dense0/"). Nothing else is touched, and settings are not compared. Returns how many entries were
/// written. Before the first is: throws UsageError for settings, the step, or no names at all, and
/// EnvironmentError with the full list of what is missing on either side or different. Local.
std::size_t restore_part(const CheckpointFile& file, std::span<const Entry> entries,
                         const std::vector<std::string>& names);

}  // namespace lockstep
