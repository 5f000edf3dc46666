#include <ctime>

#include <sys/prctl.h>

#include <lockstep/base/doze.hpp>

namespace lockstep {

void doze(Seconds duration) noexcept {
  // The kernel may by default wake a thread 50 microseconds late, to save power.
  constexpr unsigned long kSlackNanoseconds = 1000;
  thread_local const int slack_set = prctl(PR_SET_TIMERSLACK, kSlackNanoseconds);
  static_cast<void>(slack_set);
  timespec time{};
  time.tv_nsec = static_cast<long>(duration.count() * 1e9);
  nanosleep(&time, nullptr);
}

}  // namespace lockstep
