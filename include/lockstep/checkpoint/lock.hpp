#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/base/process.hpp>

namespace lockstep {

/// What ".lock" says of the job that owns a checkpoint directory.
struct LockHolder {
  std::string host;
  std::string boot_id;
  std::int64_t pid = 0;
  std::uint64_t start_time = 0;  ///< of the process, in ticks since boot
  std::string job;               ///< batch job, or empty
  std::int64_t restarts = 0;     ///< how often the batch system had started that job again
  double since = 0;              ///< seconds since 1970; for people
  std::uint64_t token = 0;       ///< fencing token: larger than that of every earlier holder
  std::string nonce;             ///< names this one holding

  friend bool operator==(const LockHolder&, const LockHolder&) = default;
};

/// "job slurm-17, pid 4711 on host n3, since 2026-01-31 12:00:00 UTC".
std::string describe(const LockHolder& holder);

/// The holder as the directory has it; nullopt when there is none, or none that can be understood. Local;
/// reads only. Throws FileError.
std::optional<LockHolder> read_lock(Directory& directory);

struct LockOptions {
  std::string steal = {};    ///< job id of a holder from which the directory is taken although it may live
  std::string gone = {};     ///< nonce of a holder that is known to be dead, wherever it ran
  Seconds local_wait{3};     ///< how long a living holder on this host may take to go
  Seconds remote_limit{30};  ///< a holder elsewhere whose heartbeat stands still for this long is dead
  Seconds heartbeat{5};
  Seconds poll{0.05};
  std::shared_ptr<const MacKey> key = {};  ///< a state file says only what was signed with it
};

/// One writer per checkpoint directory. Held from construction to destruction.
///
/// A holder on this host lives as long as its process (pid and start time, same boot): it is given
/// `local_wait` to go, then the newcomer is refused. A dead one is taken over at once, and so is a holder on
/// another host that was an earlier run of this very batch job, or that is known to be gone. Any other holder
/// there is respected as soon as its heartbeat moves, and taken over when it stood still for `remote_limit`
/// of our own monotonic clock. Of any number of newcomers exactly one wins; the others see the winner as a
/// living holder. A newcomer that is refused writes nothing.
///
/// ".lock" never changes while it is held, and only its owner's name is in it; the heartbeat is a file of its
/// own. So a holder that was stopped and wakes cannot overwrite the lock of the one that took over.
///
/// Chief only; must not communicate. `executor` runs the heartbeat.
class DirectoryLock {
 public:
  /// Waits as described. Throws EnvironmentError naming the holder when refused, and FileError.
  DirectoryLock(std::shared_ptr<Directory> directory, Clock& clock, Executor& executor, Log log,
                ProcessIdentity& identity, LockOptions options = {});

  /// Gives the directory free, if it is still ours.
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

  const LockHolder& holder() const noexcept { return self_; }
  std::uint64_t token() const noexcept { return self_.token; }

  /// False once the heartbeat has seen that another job owns the directory. Any thread; does not read the
  /// disk.
  bool held() const noexcept { return !lost_.load(); }

 private:
  class Waiting;

  void acquire();
  void end_exclusion() noexcept;
  bool claim_free();
  bool take_over(const std::string& seen, const std::optional<LockHolder>& previous,
                 Waiting& waiting_for_claim);
  bool is_ours();
  std::uint64_t next_token(const std::optional<LockHolder>& previous);
  std::string write_proposal();
  void remove_leftovers() noexcept;
  void beat() noexcept;
  void release() noexcept;

  std::shared_ptr<Directory> directory_;
  Clock& clock_;
  Log log_;
  LockOptions options_;
  ProcessIdentity& identity_;
  LockHolder self_;
  std::uint64_t beats_ = 0;
  bool beat_failed_ = false;
  bool excludes_ = false;  ///< other newcomers are kept waiting
  std::atomic<bool> lost_ = false;
  std::unique_ptr<Periodic> heartbeat_;  // last: it uses everything above
};

}  // namespace lockstep
