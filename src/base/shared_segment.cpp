#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <lockstep/base/files.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/base/shared_segment.hpp>

namespace lockstep {

SharedSegment SharedSegment::create(std::size_t bytes) {
  SystemIdentity process;
  const std::string name = fmt::format("/lockstep-{}-{:016x}", process.pid(), process.nonce());
  const int file = ::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  if (file < 0) throw FileError("make shared memory", name, errno);
  // Reserved, so that a host without the memory says so here and not with a signal at the first use.
  if (const int error = ::posix_fallocate(file, 0, static_cast<off_t>(std::max<std::size_t>(bytes, 1)));
      error != 0) {
    ::close(file);
    ::shm_unlink(name.c_str());
    throw FileError("reserve shared memory", name, error);
  }
  return {name, file, bytes};
}

SharedSegment SharedSegment::open(const std::string& name, std::size_t bytes) {
  const int file = ::shm_open(name.c_str(), O_RDWR, 0);
  if (file < 0) throw FileError("open shared memory", name, errno);
  return {name, file, bytes};
}

SharedSegment::SharedSegment(std::string name, int file, std::size_t bytes) : name_(std::move(name)) {
  const std::size_t length = std::max<std::size_t>(bytes, 1);
  void* const start = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int error = errno;
  ::close(file);
  if (start == MAP_FAILED) throw FileError("map shared memory", name_, error);
  bytes_ = {static_cast<std::byte*>(start), length};
}

SharedSegment::~SharedSegment() {
  if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
}

void SharedSegment::remove_name() const noexcept {
  ::shm_unlink(name_.c_str());
}

}  // namespace lockstep
