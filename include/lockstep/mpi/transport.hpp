#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace lockstep {

/// An operation under way. Must be tested until done before the memory it uses goes away.
struct Request {
  std::uint64_t handle[2] = {0, 0};  ///< meaning known to the transport that made it
  bool done = true;
};

/// Who brings the pages of shared memory into being.
enum class FirstTouch {
  owner,  ///< the rank whose region it is: all values are zero
  nobody  ///< whoever writes first; until then a page takes no memory, and its values are not known
};

/// Memory that all ranks of a node see, one region a rank, zero at first. Freed by a collective destructor
/// call order: every rank destroys its windows in the same order.
class SharedMemory {
 public:
  virtual ~SharedMemory() = default;

  /// The region of `rank` (of the communicator that made the window).
  virtual std::span<std::byte> region(int rank) const = 0;
};

/// Seam: messages between ranks and memory shared by them. Implemented by MPI, by a single process without
/// MPI, and by simulated ranks in one process. Only the main thread of a rank may call it. Errors throw.
///
/// Everything that can wait is started here and tested; the waiting itself, with its limits and reports, is
/// Communicator's.
class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const noexcept = 0;
  virtual int size() const noexcept = 0;

  virtual Request send(std::span<const std::byte> bytes, int destination, int tag) = 0;

  /// A message may be shorter than `bytes`; what is behind it stays as it was.
  virtual Request receive(std::span<std::byte> bytes, int source, int tag) = 0;

  /// True when a message that `source` has sent with `tag` can be received at once. Local.
  virtual bool has_message(int source, int tag) = 0;

  virtual Request broadcast(std::span<std::byte> bytes, int root) = 0;

  /// `all` holds size() pieces as long as `mine`, in the order of the ranks.
  virtual Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) = 0;

  /// Sum over ranks into `values` on every rank, in whatever order the MPI library likes.
  virtual Request all_reduce_sum(std::span<float> values) = 0;

  /// Adds what `from` says to `into`; both are values of one size. Associative and commutative.
  using Combine = void (*)(const std::byte* from, std::byte* into);

  /// Combines the `value` of all ranks into the same on every rank. All calls of a program have one
  /// `combine` and one size.
  virtual Request all_reduce_value(std::span<std::byte> value, Combine combine) = 0;

  /// Moves the operation on; true when it is complete. Local.
  virtual bool test(Request& request) = 0;

  /// A communicator of the ranks with the same `color` (not negative), in the order of `key`. Collective.
  virtual std::shared_ptr<Transport> split(int color, int key) = 0;

  /// A communicator of the ranks that can share memory with this one. Collective.
  virtual std::shared_ptr<Transport> split_by_node() = 0;

  /// Collective over ranks of one node; `bytes` may differ between ranks.
  virtual std::unique_ptr<SharedMemory> share(std::size_t bytes, FirstTouch touch) = 0;

  /// One turn of a wait: lets others run. `turn` counts from 0 within one wait, so that a transport can begin
  /// by spinning and end by giving the core away. True when it gave it away, so that some time has passed.
  /// Local.
  virtual bool relax(std::uint64_t turn) = 0;

  /// A wait has reached its limit: what needs other ranks cannot be counted on any more, so that this
  /// transport, those that were split from it and their memory are left as they are when they go, where
  /// freeing them would wait for the ranks that are missing. Local.
  virtual void abandon() noexcept {}

  /// From now on ranks may part at different places: this transport and the memory that was shared from it
  /// are left as they are when they go. Not those that were split from it. Local.
  virtual void let_go() noexcept {}

  /// Ends all processes of the job with `code`. Does not return.
  [[noreturn]] virtual void abort(int code, std::string_view reason) = 0;
};

}  // namespace lockstep
