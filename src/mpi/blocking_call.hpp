#pragma once

#include <atomic>
#include <cstdint>

namespace lockstep {

/// While it lives the main thread is in a call of MPI that may wait for other ranks without a limit, for
/// CallWatch to see. Not nested.
class BlockingCall {
 public:
  enum class Kind { start, other };

  /// `what` is what the ranks wait for, a literal.
  explicit BlockingCall(const char* what, Kind kind = Kind::other) noexcept {
    Now& now = the_call();
    now.what = what;
    now.kind = kind;
    ++now.count;
  }
  ~BlockingCall() { ++the_call().count; }
  BlockingCall(const BlockingCall&) = delete;
  BlockingCall& operator=(const BlockingCall&) = delete;

  struct Now {
    std::atomic<std::uint64_t> count = 0;  ///< odd in a call
    std::atomic<const char*> what = nullptr;
    std::atomic<Kind> kind = Kind::other;
  };
  static Now& the_call() noexcept;
};

}  // namespace lockstep
