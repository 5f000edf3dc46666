// Stands between a program and the C library: linked into a test, or preloaded into any program.

// Without this the headers give open the name open64, and both are defined below.
#undef _FILE_OFFSET_BITS

#include "shim.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

namespace lockstep::test {
namespace {

Faults* told = nullptr;

/// From the environment, for programs that know nothing of us.
Faults* from_environment() {
  const char* text = std::getenv("LOCKSTEP_FAULTS");
  if (text == nullptr) return nullptr;
  static Faults faults;
  int forever = 0;
  if (std::sscanf(text, "%255[^:]:%d:%ld:%d:%d", faults.folder, &faults.kind, &faults.at, &faults.code,
                  &forever) != 5) {
    std::fprintf(stderr, "LOCKSTEP_FAULTS=%s cannot be read\n", text);
    std::abort();
  }
  faults.forever = forever != 0;
  return &faults;
}

Faults* faults() {
  static Faults* const environment = from_environment();
  return told != nullptr ? told : environment;
}

/// The C library's own.
template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

bool is_beneath(const Faults& f, const char* path) {
  const std::size_t length = std::strlen(f.folder);
  return std::strncmp(path, f.folder, length) == 0 && (path[length] == '\0' || path[length] == '/');
}

struct Path {
  char text[512] = "";
};

Path path_of(int fd) {
  Path path;
  char link[64];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = ::readlink(link, path.text, sizeof path.text - 1);
  path.text[std::max<ssize_t>(length, 0)] = '\0';
  return path;
}

Path path_of(int directory, const char* name) {
  if (name[0] == '/') {
    Path path;
    std::snprintf(path.text, sizeof path.text, "%s", name);
    return path;
  }
  Path path;
  if (directory == AT_FDCWD) {
    if (::getcwd(path.text, sizeof path.text) == nullptr) return path;
  } else {
    path = path_of(directory);
  }
  const std::size_t length = std::strlen(path.text);
  std::snprintf(path.text + length, sizeof path.text - length, "/%s", name);
  return path;
}

[[noreturn]] void die(Faults& f) {
  f.ended = true;
  ::kill(::getpid(), SIGKILL);
  for (;;) ::pause();
}

/// Kills the process that the same mpirun started as `rank`.
void kill_rank(int rank) {
  static const auto real_open = next<int (*)(const char*, int, ...)>("open");
  static const auto real_close = next<int (*)(int)>("close");
  const auto read_text = [](const char* path, char* text, std::size_t size) {
    const int fd = real_open(path, O_RDONLY);
    const ssize_t length = fd < 0 ? 0 : ::read(fd, text, size - 1);
    if (fd >= 0) real_close(fd);
    text[std::max<ssize_t>(length, 0)] = '\0';
    return static_cast<std::size_t>(std::max<ssize_t>(length, 0));
  };
  static char text[1 << 16];
  char path[64];
  char children[8192];
  std::snprintf(path, sizeof path, "/proc/%d/task/%d/children", ::getppid(), ::getppid());
  read_text(path, children, sizeof children);
  char wanted[64];
  std::snprintf(wanted, sizeof wanted, "OMPI_COMM_WORLD_RANK=%d", rank);
  int length = 0;
  int pid = 0;
  for (const char* at = children; std::sscanf(at, "%d%n", &pid, &length) == 1; at += length) {
    std::snprintf(path, sizeof path, "/proc/%d/environ", pid);
    const std::size_t size = read_text(path, text, sizeof text);
    for (std::size_t i = 0; i < size; i += std::strlen(text + i) + 1) {
      if (std::strcmp(text + i, wanted) != 0) continue;
      ::kill(pid, SIGKILL);
      return;
    }
  }
  std::fprintf(stderr, "no rank %d was found\n", rank);
  std::abort();
}

void cut_power(const Faults& f) {
  // FS_IOC_SHUTDOWN, the same for ext4 and xfs: from now on nothing reaches the disk.
  constexpr unsigned long kShutdown = _IOR('X', 125, std::uint32_t);
  auto how = static_cast<std::uint32_t>(f.code);
  static const auto real_open = next<int (*)(const char*, int, ...)>("open");
  char parent[sizeof f.folder];  // the folder itself may not be there yet
  std::snprintf(parent, sizeof parent, "%s", f.folder);
  *std::strrchr(parent, '/') = '\0';
  const int fd = real_open(parent, O_RDONLY | O_DIRECTORY);
  if (fd < 0 || ::ioctl(fd, kShutdown, &how) != 0) {
    std::perror("the file system cannot be shut down");
    std::abort();
  }
  static const auto real_close = next<int (*)(int)>("close");
  real_close(fd);
}

enum class Verdict { go_on, fail, fail_late, shorten };

/// Counts a call and does what it was told.
Verdict meet(const char* call, const char* path, bool* tears = nullptr) {
  Faults* f = faults();
  if (f == nullptr || f->folder[0] == '\0' || !is_beneath(*f, path)) return Verdict::go_on;
  const long number = ++f->calls;
  if (static_cast<std::size_t>(number) < sizeof f->initials) f->initials[number - 1] = *call;
  if (number == f->kill_at) die(*f);
  if (f->at <= 0 || number < f->at || (number > f->at && !f->forever)) return Verdict::go_on;
  if (!f->struck.exchange(true)) {
    std::snprintf(f->what, sizeof f->what, "call %ld: %s of %.100s", number, call,
                  path + std::strlen(f->folder));
  }
  switch (f->kind) {
    case Faults::tear:
      if (tears != nullptr) {
        *tears = true;
        return Verdict::go_on;
      }
      [[fallthrough]];
    case Faults::kill:
      die(*f);
    case Faults::kill_rank:
      kill_rank(f->code);
      return Verdict::go_on;
    case Faults::cut:
      cut_power(*f);
      die(*f);
    case Faults::cut_and_live:
      if (number == f->at) cut_power(*f);
      return Verdict::go_on;
    case Faults::stop:
      ::kill(::getpid(), SIGSTOP);
      return Verdict::go_on;
    case Faults::fail:
      return Verdict::fail;
    case Faults::fail_late:
      return Verdict::fail_late;
    case Faults::shorten:
      return Verdict::shorten;
    default:
      return Verdict::go_on;
  }
}

/// A call with two ends or one, which either happens or does not.
template <class Call>
int whole(const char* name, const Path& path, Call call) {
  const Verdict verdict = meet(name, path.text);
  if (verdict == Verdict::fail) {
    errno = faults()->code;
    return -1;
  }
  const int result = call();
  if (verdict == Verdict::fail_late) {
    errno = faults()->code;
    return -1;
  }
  return result;
}

template <class Call>
ssize_t write_some(const char* name, int fd, std::size_t bytes, Call call) {
  Faults* f = faults();
  if (f == nullptr || f->folder[0] == '\0') return call(bytes);
  const Path path = path_of(fd);
  bool tears = false;
  const Verdict verdict = meet(name, path.text, &tears);
  if (verdict == Verdict::fail) {
    errno = f->code;
    return -1;
  }
  const bool half = verdict == Verdict::shorten || tears;
  const ssize_t result = call(half && bytes > 1 ? bytes / 2 : bytes);
  if (result > 0 && is_beneath(*f, path.text)) {
    f->bytes += result;
    if (std::strstr(path.text, "/.lock.tmp.") == nullptr) f->foreign += result;
  }
  if (tears) die(*f);
  if (verdict == Verdict::fail_late) {
    errno = f->code;
    return -1;
  }
  return result;
}

bool changes(int flags) {
  return (flags & O_CREAT) != 0 || ((flags & O_TRUNC) != 0 && (flags & O_ACCMODE) != O_RDONLY);
}

mode_t mode_of(int flags, std::va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? static_cast<mode_t>(va_arg(arguments, unsigned)) : 0;
}

int open_at(int directory, const char* name, int flags, mode_t mode) {
  static const auto real = next<int (*)(int, const char*, int, ...)>("openat");
  if (!changes(flags) || faults() == nullptr) return real(directory, name, flags, mode);
  const Path path = path_of(directory, name);
  const Verdict verdict = meet("open", path.text);
  if (verdict == Verdict::fail) {
    errno = faults()->code;
    return -1;
  }
  const int fd = real(directory, name, flags, mode);
  if (verdict == Verdict::fail_late) {
    static const auto real_close = next<int (*)(int)>("close");
    if (fd >= 0) real_close(fd);
    errno = faults()->code;
    return -1;
  }
  return fd;
}

}  // namespace

extern "C" void lockstep_set_faults(Faults* faults) {
  told = faults;
}

}  // namespace lockstep::test

using lockstep::test::Faults;
using lockstep::test::meet;
using lockstep::test::next;
using lockstep::test::path_of;
using lockstep::test::whole;
using lockstep::test::write_some;

// The C library's prototypes have attributes and exception specifications of their own.
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wmissing-declarations"

extern "C" {

int openat(int directory, const char* name, int flags, ...) {
  std::va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = lockstep::test::mode_of(flags, arguments);
  va_end(arguments);
  return lockstep::test::open_at(directory, name, flags, mode);
}
int openat64(int directory, const char* name, int flags, ...) {
  std::va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = lockstep::test::mode_of(flags, arguments);
  va_end(arguments);
  return lockstep::test::open_at(directory, name, flags, mode);
}
int open(const char* name, int flags, ...) {
  std::va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = lockstep::test::mode_of(flags, arguments);
  va_end(arguments);
  return lockstep::test::open_at(AT_FDCWD, name, flags, mode);
}
int open64(const char* name, int flags, ...) {
  std::va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = lockstep::test::mode_of(flags, arguments);
  va_end(arguments);
  return lockstep::test::open_at(AT_FDCWD, name, flags, mode);
}

ssize_t write(int fd, const void* data, size_t bytes) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
  return write_some("write", fd, bytes, [&](size_t n) { return real(fd, data, n); });
}
ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite");
  return write_some("write", fd, bytes, [&](size_t n) { return real(fd, data, n, offset); });
}
ssize_t pwrite64(int fd, const void* data, size_t bytes, off64_t offset) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t, off64_t)>("pwrite64");
  return write_some("write", fd, bytes, [&](size_t n) { return real(fd, data, n, offset); });
}
ssize_t writev(int fd, const iovec* pieces, int count) {
  static const auto real = next<ssize_t (*)(int, const iovec*, int)>("writev");
  // Half of a list is its first half; of one piece there is no half.
  return write_some("write", fd, static_cast<size_t>(count),
                    [&](size_t n) { return real(fd, pieces, static_cast<int>(n)); });
}

int ftruncate(int fd, off_t length) noexcept {
  static const auto real = next<int (*)(int, off_t)>("ftruncate");
  return whole("truncate", path_of(fd), [&] { return real(fd, length); });
}
int ftruncate64(int fd, off64_t length) noexcept {
  static const auto real = next<int (*)(int, off64_t)>("ftruncate64");
  return whole("truncate", path_of(fd), [&] { return real(fd, length); });
}
int fallocate(int fd, int mode, off_t offset, off_t length) {
  static const auto real = next<int (*)(int, int, off_t, off_t)>("fallocate");
  return whole("fallocate", path_of(fd), [&] { return real(fd, mode, offset, length); });
}
int fsync(int fd) {
  static const auto real = next<int (*)(int)>("fsync");
  return whole("fsync", path_of(fd), [&] { return real(fd); });
}
int fdatasync(int fd) {
  static const auto real = next<int (*)(int)>("fdatasync");
  return whole("fdatasync", path_of(fd), [&] { return real(fd); });
}

int rename(const char* from, const char* to) noexcept {
  static const auto real = next<int (*)(const char*, const char*)>("rename");
  return whole("rename", path_of(AT_FDCWD, from), [&] { return real(from, to); });
}
int renameat(int from_directory, const char* from, int to_directory, const char* to) noexcept {
  static const auto real = next<int (*)(int, const char*, int, const char*)>("renameat");
  return whole("rename", path_of(from_directory, from),
               [&] { return real(from_directory, from, to_directory, to); });
}
int renameat2(int from_directory, const char* from, int to_directory, const char* to,
              unsigned flags) noexcept {
  static const auto real = next<int (*)(int, const char*, int, const char*, unsigned)>("renameat2");
  return whole("rename", path_of(from_directory, from),
               [&] { return real(from_directory, from, to_directory, to, flags); });
}
int linkat(int from_directory, const char* from, int to_directory, const char* to, int flags) noexcept {
  static const auto real = next<int (*)(int, const char*, int, const char*, int)>("linkat");
  return whole("link", path_of(to_directory, to),
               [&] { return real(from_directory, from, to_directory, to, flags); });
}
int symlinkat(const char* content, int directory, const char* name) noexcept {
  static const auto real = next<int (*)(const char*, int, const char*)>("symlinkat");
  return whole("symlink", path_of(directory, name), [&] { return real(content, directory, name); });
}
int unlinkat(int directory, const char* name, int flags) noexcept {
  static const auto real = next<int (*)(int, const char*, int)>("unlinkat");
  return whole("unlink", path_of(directory, name), [&] { return real(directory, name, flags); });
}
int unlink(const char* name) noexcept {
  static const auto real = next<int (*)(const char*)>("unlink");
  return whole("unlink", path_of(AT_FDCWD, name), [&] { return real(name); });
}
int mkdir(const char* name, mode_t mode) noexcept {
  static const auto real = next<int (*)(const char*, mode_t)>("mkdir");
  return whole("mkdir", path_of(AT_FDCWD, name), [&] { return real(name, mode); });
}

int close(int fd) {
  static const auto real = next<int (*)(int)>("close");
  if (lockstep::test::faults() == nullptr) return real(fd);
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) return real(fd);
  const auto verdict = meet("close", path_of(fd).text);
  const int result = real(fd);  // a close that fails has closed nevertheless
  if (verdict == lockstep::test::Verdict::fail || verdict == lockstep::test::Verdict::fail_late) {
    errno = lockstep::test::faults()->code;
    return -1;
  }
  return result;
}

}  // extern "C"
