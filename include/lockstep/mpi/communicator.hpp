#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/error.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/mpi/transport.hpp>

namespace lockstep {

/// How long a wait for other ranks may last, and who hears of it.
struct WaitPolicy {
  std::shared_ptr<Clock> clock = std::make_shared<SystemClock>();
  Log log;            ///< notices of long waits
  Seconds notice{5};  ///< first notice after this, then each time the wait has doubled
  Seconds limit{0};   ///< DeadlineExceeded after this; 0: no limit
};

/// The ranks of a job, or some of them. A value that is cheap to copy; copies share one transport. Used only
/// from the main thread.
///
/// Every function is collective over the communicator unless it says otherwise: all ranks call it, in the
/// same order. Every wait has the limit of `policy` and says what it waits for.
class Communicator {
 public:
  explicit Communicator(std::shared_ptr<Transport> transport, WaitPolicy policy = {});

  /// One rank, no MPI. Local.
  static Communicator self(WaitPolicy policy = {});

  int rank() const noexcept { return transport_->rank(); }            ///< Local.
  int size() const noexcept { return transport_->size(); }            ///< Local.
  bool is_chief() const noexcept { return transport_->rank() == 0; }  ///< Local.
  const WaitPolicy& policy() const noexcept { return policy_; }       ///< Local.

  /// The same ranks and messages under another policy. Local.
  Communicator with_policy(WaitPolicy policy) const {
    Communicator other = *this;
    other.policy_ = std::move(policy);
    return other;
  }

  /// See Transport. Local.
  void let_go() const noexcept { transport_->let_go(); }

  /// Returns when all ranks have come. While it lasts the chief names the ranks that are missing; at the
  /// limit every waiting rank throws DeadlineExceeded. Cost: messages of a byte to and from as many ranks as
  /// the logarithm of their number; where the chief waits for half of `notice` or of the limit, it asks each
  /// rank once. Not for the step loop. `what` says in messages what the ranks are waiting for ("the chief to
  /// restore").
  void barrier(std::string_view what) const;

  void broadcast(std::span<std::byte> bytes, int root = 0, std::string_view what = "a broadcast") const;

  template <class T, std::size_t Extent>
  void broadcast_values(std::span<T, Extent> values, int root = 0) const {
    static_assert(std::is_trivially_copyable_v<T>);
    broadcast(std::as_writable_bytes(values), root);
  }

  /// The text of `root`, on every rank.
  std::string broadcast_text(const std::string& text, int root = 0) const;

  /// The texts of all ranks in their order, on every rank. Messages grow with the number of ranks.
  std::vector<std::string> all_gather_text(const std::string& text) const;

  /// One value of each rank, in their order, on every rank.
  template <class T>
  std::vector<T> all_gather(const T& value) const {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> all(static_cast<std::size_t>(size()));
    all_gather_bytes(std::as_bytes(std::span(&value, 1)), std::as_writable_bytes(std::span(all)));
    return all;
  }

  Communicator split(int color, int key) const;

  /// The ranks that share memory with this one; at most `at_most` a node when it is not 0 (for tests of
  /// several nodes on one machine).
  Communicator split_by_node(int at_most = 0) const;

  /// Memory that all ranks of this communicator see; they must be on one node.
  std::unique_ptr<SharedMemory> share(std::size_t bytes, FirstTouch touch = FirstTouch::owner) const {
    return transport_->share(bytes, touch);
  }

  /// Starts an operation; see Transport. Local, but for `all_reduce_sum` and `all_reduce_value`.
  Request send(std::span<const std::byte> bytes, int destination, int tag) const {
    return transport_->send(bytes, destination, tag);
  }
  Request receive(std::span<std::byte> bytes, int source, int tag) const {
    return transport_->receive(bytes, source, tag);
  }
  bool has_message(int source, int tag) const { return transport_->has_message(source, tag); }
  /// Starts one operation for each piece that MPI can count, and appends them to `requests`.
  void all_reduce_sum(std::span<float> values, std::vector<Request>& requests) const;
  Request all_reduce_value(std::span<std::byte> value, Transport::Combine combine) const {
    return transport_->all_reduce_value(value, combine);
  }
  bool test(Request& request) const { return transport_->test(request); }

  /// Waits for a started operation and returns how long that took: nothing if it was done. Local; ends when
  /// the partner has done its part. `partner` names it in messages.
  Seconds wait(Request& request, std::string_view what,
               std::string_view partner = "a partner of the operation") const;

  /// Waits until `ready()` holds (a word in shared memory that other ranks write) and returns how long that
  /// took: nothing if it held at once. `missing()` names who has not come, for notices and the error. Local;
  /// ends when the others have done their part.
  template <class Ready, class Missing>
  Seconds wait_until(std::string_view what, Ready&& ready, Missing&& missing) const {
    if (ready()) return Seconds{0};
    return wait_slowly(what, std::ref(ready), std::ref(missing), policy_.clock->now());
  }

  /// Ends all processes of the job. Local; does not return.
  [[noreturn]] void abort(ExitCode code, std::string_view reason) const;

 private:
  struct Barrier;

  void all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) const;
  Seconds wait_slowly(std::string_view what, const std::function<bool()>& ready,
                      const std::function<std::string()>& missing, Seconds start) const;

  std::shared_ptr<Transport> transport_;
  WaitPolicy policy_;
  std::shared_ptr<std::uint64_t> barriers_ = std::make_shared<std::uint64_t>(0);  ///< begun on this transport
};

/// "0-2, 5": for messages. Ranks in increasing order.
std::string to_string_ranks(std::span<const int> ranks);

/// Runs `work` on the chief alone and shares how it ended: returns on all ranks, or throws on all ranks an
/// error of the chief's class with the chief's message. Collective: one broadcast.
/// `what` says in messages what the others wait for ("the chief to restore").
void on_chief(const Communicator& comm, std::string_view what, const std::function<void()>& work);

/// Throws on all ranks, if any rank has a failure, that of the lowest such rank (with the rank named, unless
/// it is the chief). `failure` is null where all is well. Collective: one gather of a small value, two when
/// there is one.
void throw_together(const Communicator& comm, const std::exception_ptr& failure);

}  // namespace lockstep
