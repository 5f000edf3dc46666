#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lockstep {

/// Notices when one of some processes of this host has ended, be it killed. Local; any thread, one at a time.
///
/// The kernel tells (pidfd_open(2)); where it cannot, /proc is asked.
class ProcessWatch {
 public:
  struct Process {
    std::int64_t pid = 0;
    std::uint64_t start_time = 0;  ///< see ProcessIdentity
  };

  /// Processes with equal scopes know each other by the same numbers: they run on one system, in one pid
  /// namespace.
  static std::string scope();

  /// All must be of the scope of this one. What is gone already has ended.
  explicit ProcessWatch(const std::vector<Process>& processes);
  ~ProcessWatch();
  ProcessWatch(const ProcessWatch&) = delete;
  ProcessWatch& operator=(const ProcessWatch&) = delete;

  /// The index of one that has ended, or nullopt. Does not block.
  std::optional<std::size_t> ended() const;

  /// What a process of this scope does: it is there, be it busy, asleep or hung in the kernel; it was stopped
  /// (SIGSTOP), and nothing in it runs, not by a debugger; or it has ended.
  enum class State { there, stopped, ended };
  static State state(const Process& process);

  /// Kills a process of this scope (SIGKILL), which it cannot refuse, stopped or not; none if it has ended.
  static void kill(const Process& process);

 private:
  struct Watched {
    Process process;
    int fd;  ///< -1: the kernel does not tell
  };
  std::vector<Watched> watched_;
};

}  // namespace lockstep
