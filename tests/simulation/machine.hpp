#pragma once

// The world in which simulated jobs run: time, processes, one disk, and the seams through which jobs meet
// them.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/base/signals.hpp>

namespace lockstep::test {

/// Random numbers, all from one seed (splitmix64).
class Draw {
 public:
  explicit Draw(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits();
  std::uint64_t below(std::uint64_t bound) { return bits() % bound; }
  double uniform(double low, double high);
  bool chance(double probability) { return uniform(0, 1) < probability; }

 private:
  std::uint64_t state_;
};

class Machine;

/// One simulated rank. What a dead one does has no effect, and every call of it fails.
struct Process {
  Machine* machine = nullptr;
  int rank = 0;
  std::string host;
  std::int64_t pid = 0;

  bool alive = true;
  int exit_code = -1;
  double skew = 0;   ///< seconds of its wall clock
  double drift = 0;  ///< of all its clocks
  double asleep_until = 0;
  std::optional<int> signal;

  // Faults of its file operations, which are counted from 1.
  long operations = 0;
  long die_at = 0;
  long fail_from = 0;
  long fail_until = 0;
  int fail_code = 0;

  std::vector<class SimWorker*> workers;
  std::vector<class SimPeriodic*> periodics;

  void die(int code);
};

struct Inode {
  std::vector<std::byte> data;
  std::size_t durable = 0;  ///< bytes that would survive a power cut
  std::int64_t step = -2;   ///< of the checkpoint that it is; -1: none; -2: to be looked at
};
inline std::string_view text_of(const Inode& inode) {
  return {reinterpret_cast<const char*>(inode.data.data()), inode.data.size()};
}
using Names = std::map<std::string, std::shared_ptr<Inode>, std::less<>>;

struct Disk {
  Names names;
  Names durable_names;
  struct Change {
    double time = 0;
    std::string host;
    std::string name;
    std::shared_ptr<Inode> before;  ///< null: there was no such name
    std::shared_ptr<Inode> after;   ///< null: there is none any more
    std::string from;               ///< a name that went away with it, which was that of `after`
  };
  std::vector<Change> unsynced;  ///< changes of names, in their order
  std::vector<Change> recent;    ///< changes that other hosts may not see in their listings yet

  void change(const Process& by, const std::string& name, std::shared_ptr<Inode> inode,
              const std::string& from = {});

  /// Any first part of what was not synced survives.
  void cut_power(Draw& draw);
};

class Machine {
 public:
  Machine(std::uint64_t seed, bool verbose) : draw(seed), verbose_(verbose) {}

  Draw draw;
  double time = 100;
  Disk disk;
  bool stale_listings = false;
  std::int64_t acknowledged = -1;
  std::vector<std::unique_ptr<Process>> processes;

  /// The step of the checkpoint that some bytes are, or -1.
  std::function<std::int64_t(const std::vector<std::byte>&)> step_of;

  /// What does not hold, the first time.
  std::string problem;
  void broken(const std::string& text);

  Process& start_process(const std::string& host, int rank);

  /// The promises that hold at any time: after a change of names.
  void check_owner(const Process& by, std::string_view operation, const std::string& name);
  void check_disk(std::string_view operation, const std::string& name);

  /// The newest whole checkpoint among `names`; `synced`: of which every byte would survive a power cut.
  std::int64_t newest(const Names& names, bool synced);

  void note(const std::string& text);

 private:
  bool verbose_;
  std::int64_t next_pid_ = 1000;
};

std::shared_ptr<FileSystem> make_files(Process& process);
std::shared_ptr<Clock> make_clock(Process& process);
std::shared_ptr<Executor> make_executor(Process& process, bool deferred);
std::shared_ptr<ProcessIdentity> make_identity(Process& process, std::string job, std::int64_t restarts);
std::shared_ptr<Signals> make_signals(Process& process);

/// What runs beside the main thread of a process gets a turn.
void run_beside(Process& process);

}  // namespace lockstep::test
