#include <cstdio>
#include <cstdlib>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/mpi/call_watch.hpp>

#include "blocking_call.hpp"

namespace lockstep {
namespace {

constexpr Seconds kPeriod{0.25};

void end_process(const std::string& text) {
  std::fprintf(stderr, "error: %s\n", text.c_str());
  std::fflush(stderr);
  std::_Exit(static_cast<int>(ExitCode::try_again));
}

}  // namespace

BlockingCall::Now& BlockingCall::the_call() noexcept {
  static Now now;
  return now;
}

CallWatch::CallWatch(Executor& executor, ProcessIdentity& process, Limits limits, Lost lost)
    : limits_(limits),
      lost_(lost ? std::move(lost) : end_process),
      who_(fmt::format("pid {} on {}", process.pid(), process.host())) {
  if (limits.start.count() <= 0 && limits.call.count() <= 0) return;
  thread_ = executor.every("call watch", kPeriod, [this] { look(); });
}

void CallWatch::look() {
  BlockingCall::Now& now = BlockingCall::the_call();
  const std::uint64_t count = now.count;
  const Seconds time = clock_.now();
  if (count != seen_) {
    seen_ = count;
    since_ = time;
    told_ = false;
    return;
  }
  if (count % 2 == 0 || told_) return;
  const Seconds limit = now.kind == BlockingCall::Kind::start ? limits_.start : limits_.call;
  const char* const what = now.what;
  // The call may have ended meanwhile, and what was read be another's.
  if (limit.count() <= 0 || time - since_ < limit || now.count != count) return;
  told_ = true;
  lost_(fmt::format(
      "{} has waited {:.1f} s (the limit) for {}, and MPI does not say which rank is missing; look at the "
      "hosts of the job and their logs, and launch again to go on from the newest checkpoint",
      who_, (time - since_).count(), what));
}

}  // namespace lockstep
