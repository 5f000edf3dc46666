#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/base/error.hpp>

namespace lockstep {

/// A file operation failed; keeps what was tried, where, and the system's reason.
class FileError : public IoError {
 public:
  /// `operation` is a verb ("write", "sync"); `code` an errno value.
  FileError(std::string_view operation, std::filesystem::path path, int code);

  const std::filesystem::path& path() const noexcept { return path_; }
  int code() const noexcept { return code_; }

 private:
  std::filesystem::path path_;
  int code_;
};

/// A file being written, front to back. Every operation throws FileError. Not thread-safe.
class WritableFile {
 public:
  virtual ~WritableFile() = default;  ///< closes, ignoring errors; call `close` to see them

  /// Writes all of `bytes`, going on after short writes and interruptions.
  virtual void write(std::span<const std::byte> bytes) = 0;

  /// What was written so far may go to the disk already, while more is written. A hint: proves nothing, and
  /// `sync` sees what goes wrong.
  virtual void start_writing_back() {}

  /// Returns once the contents would survive a power cut. After a failure the contents on disk are unknown
  /// and a second call proves nothing: throw the file away and write another.
  virtual void sync() = 0;

  virtual void close() = 0;
};

class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  virtual std::uint64_t size() const = 0;

  /// Fills `bytes` from `offset`; returns how many were there (less only at the end of the file).
  virtual std::size_t read(std::uint64_t offset, std::span<std::byte> bytes) = 0;

  /// Everything from `offset` on is about to be read, front to back. A hint.
  virtual void expect_reading(std::uint64_t /*offset*/) {}

  /// True when its mode lets others than its owner read it.
  virtual bool others_may_read() const { return false; }
};

struct DirectoryEntry {
  std::string name;
  std::uint64_t size = 0;
  bool is_regular = false;  ///< a plain file: no link, folder or pipe
};

/// One open directory. Names are base names and are resolved beneath it without following links, so neither
/// a renamed parent nor a planted link can redirect an operation. Every operation throws FileError.
/// Any thread may call; two operations on one name must not run at once.
class Directory {
 public:
  virtual ~Directory() = default;

  virtual const std::filesystem::path& path() const = 0;

  /// A new file; throws (EEXIST) when the name is taken. Mode 0640 less the umask.
  virtual std::unique_ptr<WritableFile> create(const std::string& name) = 0;

  virtual std::unique_ptr<ReadableFile> open(const std::string& name) = 0;
  virtual bool exists(const std::string& name) = 0;
  virtual std::vector<DirectoryEntry> list() = 0;

  /// Atomically takes the place of `to` if it exists.
  virtual void replace(const std::string& from, const std::string& to) = 0;

  /// Throws (EEXIST) when `to` exists.
  virtual void rename(const std::string& from, const std::string& to) = 0;

  virtual void remove(const std::string& name) = 0;

  /// Returns once the names (creations, renames, removals) would survive a power cut.
  virtual void sync() = 0;

  virtual std::uint64_t available_bytes() = 0;

  /// False when its path leads elsewhere by now: it was moved or removed, or something was mounted or taken
  /// away there. What is written is then not where anybody looks for it.
  virtual bool is_at_its_path() { return true; }

  /// Keeps out others that ask for the same, until `end_exclusion` or the end of the process; false when one
  /// of them has it. A courtesy, for which nothing that must hold may depend on it: true as well where the
  /// file system knows of no such thing.
  virtual bool try_exclude() { return true; }
  virtual void end_exclusion() {}

  /// True when users other than the owner may create, rename and remove files of the owner in it.
  virtual bool others_may_write() { return false; }
};

/// Seam: files. The only place of the project that makes file-system calls is the real one.
class FileSystem {
 public:
  virtual ~FileSystem() = default;

  /// Throws FileError (ENOENT, ENOTDIR, EACCES...) when it cannot be opened.
  virtual std::unique_ptr<Directory> open_directory(const std::filesystem::path& path) = 0;

  /// Creates `path` and its parents as needed and opens it.
  virtual std::unique_ptr<Directory> create_directory(const std::filesystem::path& path) = 0;

  /// Data that the user names: links are followed. Throws FileError.
  virtual std::unique_ptr<ReadableFile> open_file(const std::filesystem::path& path) = 0;
};

class PosixFileSystem final : public FileSystem {
 public:
  std::unique_ptr<Directory> open_directory(const std::filesystem::path& path) override;
  std::unique_ptr<Directory> create_directory(const std::filesystem::path& path) override;
  std::unique_ptr<ReadableFile> open_file(const std::filesystem::path& path) override;
};

/// All bytes of a file, read in pieces so that a lying size cannot cause a huge allocation at once.
/// Throws FileError, and DataError when it is larger than `limit`.
std::vector<std::byte> read_all(ReadableFile& file, std::uint64_t limit);

/// Replaces `name` by `bytes` so that after a crash or power cut it holds either the old or the new content:
/// temporary name, write, sync, rename over, sync of the directory.
void replace_file(Directory& directory, const std::string& name, std::span<const std::byte> bytes);

}  // namespace lockstep
