#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

class KeptMemory;
struct KeptValues;

/// Where MPI survives the loss of a rank: what a session leaves in memory when it ends with DeadlineExceeded,
/// for the session that the ranks which are left make next. Given to both in SessionConfig::keepsake; every
/// rank has one of its own.
///
/// A session that finds values here goes on from them, and does not look at checkpoints: the step in which
/// the rank was lost is repeated. There are none where a rank was lost while parameters were being updated
/// (but with `second_copy`), or where those who are left do not hold all of the state: slots of an optimizer
/// that is sharded over several nodes, of a node whose ranks were all lost (with `second_copy`: and those of
/// the node behind it, too); residuals of bf16 gradients between nodes; a state that was frozen before the
/// session. It then goes on from the newest checkpoint.
class Keepsake {
 public:
  /// `second_copy`: every rank copies its slice of the parameters, slots and buffers before each update, so
  /// that an update can be undone. Costs as much memory as they take, and the time to copy them. Where an
  /// optimizer is sharded over several nodes, each node keeps its own shard so, and the shard of the node
  /// before it after the last two steps; each step sends a shard of parameters and slots.
  explicit Keepsake(bool second_copy = false);
  ~Keepsake();
  Keepsake(const Keepsake&) = delete;
  Keepsake& operator=(const Keepsake&) = delete;

  /// Finds out what can be gone on with. Collective over the ranks that are left, once each has left its
  /// session. Throws DeadlineExceeded when one more is missing; then again with those that are left then.
  void settle(const Communicator& left);

  /// The step after which the next session goes on; nullopt: that of the newest checkpoint, or none. The same
  /// on all ranks. Local.
  std::optional<std::int64_t> step() const noexcept;

  bool second_copy() const noexcept { return second_copy_; }  ///< Local.

  /// What the second copy of the newest session takes on this rank's node, in bytes. Local.
  std::size_t second_copy_bytes() const noexcept;

  // Session only.
  void adopt(std::shared_ptr<KeptMemory> memory);  ///< of the newest session; on all ranks or none
  void forget_before();                            ///< of the one before it: all have adopted the newest
  const KeptMemory* memory() const noexcept { return memory_.get(); }
  const KeptValues* values() const noexcept { return values_.get(); }  ///< of `step`
  const std::string& owner() const noexcept { return owner_; }
  void set_owner(std::string nonce) { owner_ = std::move(nonce); }  ///< of the checkpoint directory

 private:
  bool second_copy_;
  std::unique_ptr<KeptValues> values_;
  std::string owner_;
  std::shared_ptr<KeptMemory> memory_;
  std::shared_ptr<KeptMemory> before_;  ///< while some ranks may not have adopted `memory_` yet
  std::uint64_t sessions_ = 0;          ///< adopted
};

}  // namespace lockstep
