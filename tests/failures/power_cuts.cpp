// Cuts the power at calls of a job that saves, on real file systems, and looks at what is left.
//
//   power_cuts [--size full] [--first]
//
// The file systems lie in loop devices. A cut is their shutdown ioctl: what has not reached the journal is
// lost, or the journal is written out but no data; both are worse than most real cuts. Then the job is
// killed, or lives on among errors; the file system is mounted again, which repairs it, and must hold every
// save that was acknowledged. Exits with 77 where nobody may mount.

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "job.hpp"
#include "scenario.hpp"

namespace lockstep::test {
namespace {

constexpr int kSkipped = 77;
constexpr long kInCi = 16;  // of each kind

struct FileSystemKind {
  const char* name;
  const char* make;     ///< command, without the file
  const char* options;  ///< of mount
  long bytes;
};

constexpr long kMiB = 1 << 20;
constexpr const char* kMakeExt4 = "mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0";
// mkfs.xfs refuses less than 300 MB.
constexpr std::array kKinds = {
    FileSystemKind{"ext4 data=ordered", kMakeExt4, "data=ordered", 64 * kMiB},
    FileSystemKind{"ext4 data=journal", kMakeExt4, "data=journal", 64 * kMiB},
    FileSystemKind{"ext4 data=writeback", kMakeExt4, "data=writeback,noauto_da_alloc", 64 * kMiB},
    FileSystemKind{"xfs", "mkfs.xfs -q -f", "defaults", 400 * kMiB},
};

void shell(const std::string& command) {
  const int status = std::system(command.c_str());
  if (status != 0) throw std::runtime_error(fmt::format("'{}' failed", command));
}

/// A file system of its own, seen by this process and its children alone; it goes with them.
class Mounted {
 public:
  Mounted(const FileSystemKind& kind, const std::filesystem::path& scratch)
      : image_(scratch / "image"), where_(scratch / "mounted"), options_(kind.options) {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      throw std::runtime_error(fmt::format("no mounts of our own: {}", std::strerror(errno)));
    }
    shell(fmt::format("truncate -s {} {} && {} {} > /dev/null 2>&1", kind.bytes, image_.string(), kind.make,
                      image_.string()));
    std::filesystem::create_directory(where_);
    mount();
  }
  ~Mounted() { ::umount2(where_.c_str(), MNT_DETACH); }
  Mounted(const Mounted&) = delete;
  Mounted& operator=(const Mounted&) = delete;

  const std::filesystem::path& where() const { return where_; }

  /// What was written so far outlives what comes.
  void settle() const {
    const int fd = ::open(where_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || ::syncfs(fd) != 0) throw std::runtime_error("cannot sync");
    ::close(fd);
  }

  /// As after a cut: what only the memory knows is gone.
  void mount_again() const {
    if (::umount(where_.c_str()) != 0)
      throw std::runtime_error(fmt::format("umount: {}", std::strerror(errno)));
    mount();
  }

 private:
  void mount() const {
    shell(fmt::format("mount -o loop,{} {} {} 2>&1", options_, image_.string(), where_.string()));
  }

  std::filesystem::path image_;
  std::filesystem::path where_;
  std::string options_;
};

/// Why this kind cannot be tried here; empty: it can.
std::string obstacle(const FileSystemKind& kind) {
  if (::geteuid() != 0) return "only root may mount";
  const auto scratch = make_scratch();
  const SharedTraces traces;
  const Ended ended = in_child([&] {
    try {
      const Mounted mounted(kind, scratch);
      Faults& faults = traces->faults;
      std::snprintf(faults.folder, sizeof faults.folder, "%s", (mounted.where() / "x").c_str());
      faults.kind = Faults::cut;
      faults.at = 1;
      faults.code = 2;
      lockstep_set_faults(&faults);
      ::mkdir(faults.folder, 0700);
    } catch (const std::exception& error) {
      std::snprintf(traces->log, sizeof traces->log, "%s", error.what());
    }
    return 0;
  });
  std::filesystem::remove_all(scratch);
  if (ended.signal == SIGKILL) return "";
  return traces->log[0] != '\0' ? traces->log : "its shutdown ioctl fails";
}

std::string judge(const Traces& traces, const Ended& ended) {
  const Faults& faults = traces.faults;
  if (!faults.struck) return "the power was not cut; ";
  if (faults.kind == Faults::cut) return ended.signal == SIGKILL ? "" : "it outlived its end; ";
  // All that came after the cut failed, and it must say so. A cut of the very last calls changes nothing.
  return ended.exit_code == 74 || ended.exit_code == 0 ? "" : "it failed otherwise; ";
}

/// What is cut, and how.
struct Point {
  Scenario scenario;
  long at = 0;
  Faults::Kind kind = Faults::cut;
  int how = 0;
};

/// Three ways at each call; or some after calls that sync, since a promise is given there, and a journal that
/// is dropped forgets most.
std::vector<Point> points_of(Sweep& sweep, bool full) {
  constexpr int kFlushJournal = 1;
  constexpr int kDropJournal = 2;
  std::vector<Point> points;
  for (const Scenario& scenario : scenarios()) {
    // What ranks do before the chief is the same at any number of them, but for shards.
    const bool in_shards = scenario.job.shard_bytes == 1;
    if (scenario.job.ranks != 1 && !(scenario.job.ranks == 3 && in_shards)) continue;
    const std::string calls = sweep.rehearse(scenario);
    for (std::size_t i = 0; i < calls.size(); ++i) {
      const bool promised = i > 0 && (calls[i - 1] == 'f' || calls[i - 1] == 'r');
      const auto at = static_cast<long>(i + 1);
      if (full) {
        points.push_back({scenario, at, Faults::cut, kFlushJournal});
        points.push_back({scenario, at, Faults::cut_and_live, kFlushJournal});
      }
      if (full || promised) points.push_back({scenario, at, Faults::cut, kDropJournal});
    }
  }
  return points;
}

Totals sweep(int worker, int workers, const std::filesystem::path& scratch, std::size_t kind, bool full) {
  const Mounted mounted(kKinds.at(kind), scratch);
  Sweep sweep(
      worker, workers, scratch, mounted.where() / "run", [&] { mounted.settle(); },
      [&] { mounted.mount_again(); });
  const std::vector<Point> points = points_of(sweep, full);
  const std::size_t count = full ? points.size() : kInCi;
  for (std::size_t i = 0; i < count; ++i) {
    if (!sweep.mine()) continue;
    // Every file system meets other points.
    const std::size_t which = full ? i : (i * kKinds.size() + kind) * points.size() / (count * kKinds.size());
    const Point& point = points[which];
    sweep.try_with(
        point.scenario,
        [&](Faults& faults) {
          faults.kind = point.kind;
          faults.at = point.at;
          faults.code = point.how;
        },
        judge);
  }
  return sweep.totals;
}

}  // namespace
}  // namespace lockstep::test

int main(int argc, char** argv) {
  using namespace lockstep::test;
  may_end_at_first(argc, argv);
  const bool full = is_full(argc, argv);
  Totals totals;
  long tried = 0;
  for (std::size_t kind = 0; kind < kKinds.size(); ++kind) {
    const char* name = kKinds.at(kind).name;
    if (const std::string reason = obstacle(kKinds.at(kind)); !reason.empty()) {
      std::printf("%s is left out: %s\n", name, reason.c_str());
      continue;
    }
    ++tried;
    const Totals one = on_all_cores([&](int worker, int workers, const std::filesystem::path& scratch) {
      return sweep(worker, workers, scratch, kind, full);
    });
    std::printf("%s: %ld cuts, %ld problems\n", name, one.points, one.problems);
    std::fflush(stdout);  // or the processes of the next part print it, too
    totals.points += one.points;
    totals.problems += one.problems;
  }
  if (tried == 0) return kSkipped;
  return report(totals, tried * (full ? 400 : kInCi));
}
