#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace lockstep {

/// Who runs: what the lock of a checkpoint directory and `status.json` say of a process. A small seam beside
/// the files, so that simulated ranks have identities of their own.
class ProcessIdentity {
 public:
  virtual ~ProcessIdentity() = default;

  virtual std::string host() const = 0;
  virtual std::string boot_id() const = 0;  ///< differs after every boot of the host
  virtual std::int64_t pid() const = 0;

  /// When `pid` on this host was started, in clock ticks since boot; nullopt when there is no such process.
  /// A pid together with its start time names a process for good.
  virtual std::optional<std::uint64_t> start_time(std::int64_t pid) const = 0;

  /// An identifier of the batch job this process belongs to ("slurm-123"), or empty.
  virtual std::string job_id() const = 0;

  /// How often the batch system has started this job again: a process of the same job with a smaller number
  /// is gone, wherever it ran.
  virtual std::int64_t job_restarts() const { return 0; }

  /// What tells this program from others and from other builds of it (the linker's build id, or a digest of
  /// the file), or empty when that is not known.
  virtual std::string program() const { return {}; }

  /// A number that no other process draws (for temporary names).
  virtual std::uint64_t nonce() = 0;
};

class SystemIdentity final : public ProcessIdentity {
 public:
  std::string host() const override;
  std::string boot_id() const override;
  std::int64_t pid() const override;
  std::optional<std::uint64_t> start_time(std::int64_t pid) const override;
  std::string job_id() const override;
  std::int64_t job_restarts() const override;
  std::string program() const override;
  std::uint64_t nonce() override;
};

}  // namespace lockstep
