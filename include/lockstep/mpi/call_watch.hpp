#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/process.hpp>

namespace lockstep {

/// Ends the process when it has been too long in a call of MPI that waits for other ranks without a limit:
/// to start and end MPI, and to make and free communicators and shared memory. All other waits have limits
/// of their own (WaitPolicy). A thread that needs no MPI; it is made before Environment and goes after it.
class CallWatch {
 public:
  using Lost = std::function<void(const std::string& text)>;

  struct Limits {
    Seconds start{0};  ///< for MPI to start, which waits for the slowest host; 0: no limit
    Seconds call{0};   ///< for any other call; 0: no limit
  };

  /// `lost` is called on the watching thread, once a call. Left out, it prints the text and ends the process
  /// with exit code 75. Local.
  CallWatch(Executor& executor, ProcessIdentity& process, Limits limits, Lost lost = nullptr);
  CallWatch(const CallWatch&) = delete;
  CallWatch& operator=(const CallWatch&) = delete;

 private:
  void look();

  Limits limits_;
  Lost lost_;
  std::string who_;
  SystemClock clock_;
  std::uint64_t seen_ = 0;  ///< the call under way at the last look
  Seconds since_{0};
  bool told_ = false;
  std::unique_ptr<Periodic> thread_;  // last: it uses everything above
};

}  // namespace lockstep
