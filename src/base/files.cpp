#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <lockstep/base/files.hpp>

namespace lockstep {
namespace {

/// Owns a file descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd) noexcept : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;

  int get() const noexcept { return fd_; }
  int release() noexcept { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

template <class Call>
auto retry_interrupted(Call call) {
  auto result = call();
  while (result == -1 && errno == EINTR) result = call();
  return result;
}

class PosixWritableFile final : public WritableFile {
 public:
  PosixWritableFile(Descriptor fd, std::filesystem::path path) : fd_(std::move(fd)), path_(std::move(path)) {}

  void write(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const auto written = retry_interrupted([&] { return ::write(fd_.get(), bytes.data(), bytes.size()); });
      if (written < 0) throw FileError("write", path_, errno);
      if (written == 0) throw FileError("write", path_, ENOSPC);
      bytes = bytes.subspan(static_cast<std::size_t>(written));
      written_ += written;
    }
  }

  void start_writing_back() override {
    ::sync_file_range(fd_.get(), handed_on_, written_ - handed_on_, SYNC_FILE_RANGE_WRITE);
    handed_on_ = written_;
  }

  void sync() override {
    // Not retried on failure: the kernel marks the pages clean even though they are not on the disk.
    if (::fsync(fd_.get()) != 0) throw FileError("sync", path_, errno);
  }

  void close() override {
    const int fd = fd_.release();
    if (fd >= 0 && ::close(fd) != 0 && errno != EINTR) throw FileError("close", path_, errno);
  }

 private:
  Descriptor fd_;
  std::filesystem::path path_;
  off_t written_ = 0;
  off_t handed_on_ = 0;  // up to here the kernel was asked to write back
};

class PosixReadableFile final : public ReadableFile {
 public:
  PosixReadableFile(Descriptor fd, std::filesystem::path path) : fd_(std::move(fd)), path_(std::move(path)) {
    struct stat status {};
    if (::fstat(fd_.get(), &status) != 0) throw FileError("examine", path_, errno);
    // A pipe or folder in a file's place would block or make no sense.
    if (!S_ISREG(status.st_mode)) throw FileError("read (not a plain file)", path_, EINVAL);
    size_ = static_cast<std::uint64_t>(status.st_size);
    others_may_read_ = (status.st_mode & (S_IRGRP | S_IROTH)) != 0;
  }

  std::uint64_t size() const override { return size_; }
  bool others_may_read() const override { return others_may_read_; }

  void expect_reading(std::uint64_t offset) override {
    ::posix_fadvise(fd_.get(), static_cast<off_t>(offset), 0, POSIX_FADV_SEQUENTIAL);
  }

  std::size_t read(std::uint64_t offset, std::span<std::byte> bytes) override {
    std::size_t done = 0;
    while (done < bytes.size()) {
      const auto count = retry_interrupted([&] {
        return ::pread(fd_.get(), bytes.data() + done, bytes.size() - done,
                       static_cast<off_t>(offset + done));
      });
      if (count < 0) throw FileError("read", path_, errno);
      if (count == 0) break;
      done += static_cast<std::size_t>(count);
    }
    return done;
  }

 private:
  Descriptor fd_;
  std::filesystem::path path_;
  std::uint64_t size_ = 0;
  bool others_may_read_ = false;
};

void check_base_name(const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    throw InternalError("not a base name: '" + name + "'");
  }
}

class PosixDirectory final : public Directory {
 public:
  PosixDirectory(Descriptor fd, std::filesystem::path path) : fd_(std::move(fd)), path_(std::move(path)) {
    // The working directory may change.
    std::error_code unknown;
    place_ = std::filesystem::absolute(path_, unknown);
    if (unknown) place_ = path_;
  }

  const std::filesystem::path& path() const override { return path_; }

  std::unique_ptr<WritableFile> create(const std::string& name) override {
    check_base_name(name);
    const int fd = retry_interrupted([&] {
      return ::openat(fd_.get(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0640);
    });
    if (fd < 0) throw FileError("create", path_ / name, errno);
    return std::make_unique<PosixWritableFile>(Descriptor(fd), path_ / name);
  }

  std::unique_ptr<ReadableFile> open(const std::string& name) override {
    check_base_name(name);
    // Non-blocking, so that a pipe planted under the name cannot hang us before it is refused.
    const int fd = retry_interrupted(
        [&] { return ::openat(fd_.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK); });
    if (fd < 0) throw FileError("open", path_ / name, errno);
    return std::make_unique<PosixReadableFile>(Descriptor(fd), path_ / name);
  }

  bool exists(const std::string& name) override {
    check_base_name(name);
    struct stat status {};
    if (::fstatat(fd_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) return true;
    if (errno == ENOENT) return false;
    throw FileError("look up", path_ / name, errno);
  }

  std::vector<DirectoryEntry> list() override {
    // A descriptor of its own: the read position belongs to the open file description.
    const int fd = ::openat(fd_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) throw FileError("list", path_, errno);
    DIR* stream = ::fdopendir(fd);
    if (stream == nullptr) {
      const int code = errno;
      ::close(fd);
      throw FileError("list", path_, code);
    }
    const std::unique_ptr<DIR, int (*)(DIR*)> closer(stream, ::closedir);
    std::vector<DirectoryEntry> entries;
    for (;;) {
      errno = 0;
      const dirent* found = ::readdir(stream);
      if (found == nullptr) {
        if (errno != 0) throw FileError("list", path_, errno);
        break;
      }
      const std::string name = found->d_name;
      if (name == "." || name == "..") continue;
      struct stat status {};
      if (::fstatat(fd_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno == ENOENT) continue;  // removed since readdir saw it
        throw FileError("look up", path_ / name, errno);
      }
      entries.push_back({name, static_cast<std::uint64_t>(status.st_size), S_ISREG(status.st_mode)});
    }
    std::sort(entries.begin(), entries.end(),
              [](const auto& left, const auto& right) { return left.name < right.name; });
    return entries;
  }

  void replace(const std::string& from, const std::string& to) override {
    check_base_name(from);
    check_base_name(to);
    if (::renameat(fd_.get(), from.c_str(), fd_.get(), to.c_str()) != 0) {
      throw FileError("rename to " + to, path_ / from, errno);
    }
  }

  void rename(const std::string& from, const std::string& to) override {
    check_base_name(from);
    check_base_name(to);
    if (::renameat2(fd_.get(), from.c_str(), fd_.get(), to.c_str(), RENAME_NOREPLACE) == 0) return;
    if (errno != EINVAL && errno != ENOSYS) throw FileError("rename to " + to, path_ / from, errno);
    // File systems without RENAME_NOREPLACE (NFS): a hard link refuses an existing name just as atomically.
    if (::linkat(fd_.get(), from.c_str(), fd_.get(), to.c_str(), 0) != 0) {
      throw FileError("rename to " + to, path_ / from, errno);
    }
    remove(from);
  }

  void remove(const std::string& name) override {
    check_base_name(name);
    if (::unlinkat(fd_.get(), name.c_str(), 0) != 0) throw FileError("remove", path_ / name, errno);
  }

  void sync() override {
    if (::fsync(fd_.get()) != 0) throw FileError("sync", path_, errno);
  }

  std::uint64_t available_bytes() override {
    struct statvfs status {};
    if (::fstatvfs(fd_.get(), &status) != 0) throw FileError("examine", path_, errno);
    return std::uint64_t{status.f_bavail} * status.f_frsize;
  }

  bool is_at_its_path() override {
    struct stat mine {};
    struct stat there {};
    if (::fstat(fd_.get(), &mine) != 0) throw FileError("examine", path_, errno);
    if (::stat(place_.c_str(), &there) != 0) {
      if (errno == ENOENT || errno == ENOTDIR) return false;
      throw FileError("examine", path_, errno);
    }
    return mine.st_dev == there.st_dev && mine.st_ino == there.st_ino;
  }

  bool try_exclude() override {
    return retry_interrupted([&] { return ::flock(fd_.get(), LOCK_EX | LOCK_NB); }) == 0 ||
           errno != EWOULDBLOCK;
  }

  void end_exclusion() override { ::flock(fd_.get(), LOCK_UN); }

  bool others_may_write() override {
    struct stat status {};
    if (::fstat(fd_.get(), &status) != 0) throw FileError("examine", path_, errno);
    return (status.st_mode & (S_IWGRP | S_IWOTH)) != 0 && (status.st_mode & S_ISVTX) == 0;
  }

 private:
  Descriptor fd_;
  std::filesystem::path path_;
  std::filesystem::path place_;  ///< from the root
};

}  // namespace

FileError::FileError(std::string_view operation, std::filesystem::path path, int code)
    : IoError(fmt::format("cannot {} '{}' ({})", operation, path.string(),
                          std::generic_category().message(code))),
      path_(std::move(path)),
      code_(code) {}

std::unique_ptr<Directory> PosixFileSystem::open_directory(const std::filesystem::path& path) {
  const int fd = retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (fd < 0) throw FileError("open directory", path, errno);
  return std::make_unique<PosixDirectory>(Descriptor(fd), path);
}

std::unique_ptr<Directory> PosixFileSystem::create_directory(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return open_directory(path);
  // What is in the way is not the whole path but the first parent that is no directory, or admits nothing.
  std::filesystem::path parent = path;
  std::error_code unknown;
  while (parent.has_relative_path() && !std::filesystem::exists(parent, unknown)) {
    const std::filesystem::path above = parent.parent_path();
    if (above == parent) break;
    parent = above;
  }
  if (parent.empty()) parent = ".";
  if (parent == path) throw FileError("create directory", path, error.value());
  throw FileError(fmt::format("create directories below '{}', which are needed for", parent.string()), path,
                  error.value());
}

std::unique_ptr<ReadableFile> PosixFileSystem::open_file(const std::filesystem::path& path) {
  const int fd = retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  if (fd < 0) throw FileError("open", path, errno);
  return std::make_unique<PosixReadableFile>(Descriptor(fd), path);
}

std::vector<std::byte> read_all(ReadableFile& file, std::uint64_t limit) {
  constexpr std::size_t kPiece = std::size_t{64} << 20;
  if (file.size() > limit) {
    throw DataError(
        fmt::format("a file of {} bytes is larger than the {} that are accepted here", file.size(), limit));
  }
  std::vector<std::byte> bytes;
  for (;;) {
    const std::size_t offset = bytes.size();
    const std::uint64_t expected = file.size() > offset ? file.size() - offset : 0;
    if (expected == 0) return bytes;
    bytes.resize(offset + static_cast<std::size_t>(std::min<std::uint64_t>(expected, kPiece)));
    const std::size_t count = file.read(offset, std::span(bytes).subspan(offset));
    bytes.resize(offset + count);
    if (count == 0) return bytes;
  }
}

void replace_file(Directory& directory, const std::string& name, std::span<const std::byte> bytes) {
  const std::string temporary = "." + name + ".tmp";
  if (directory.exists(temporary)) directory.remove(temporary);  // left by a run that died here
  auto file = directory.create(temporary);
  file->write(bytes);
  file->sync();
  file->close();
  directory.replace(temporary, name);
  directory.sync();
}

}  // namespace lockstep
