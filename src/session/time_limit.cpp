#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <lockstep/session/time_limit.hpp>

namespace lockstep {

TimeLimit::TimeLimit(Seconds end, Seconds margin, std::string name)
    : end_(end), margin_(margin), name_(std::move(name)) {}

bool TimeLimit::reached(Seconds now, Seconds slow_save) {
  // A slow step is forgotten over some hundreds of others.
  constexpr double kKept = 0.99;
  if (last_) slow_step_ = std::max(now - *last_, kKept * slow_step_);
  last_ = now;
  slow_save_ = slow_save;
  left_ = end_ - now;
  return left_ < 2 * slow_save_ + 2 * slow_step_ + margin_;
}

std::string TimeLimit::describe() const {
  return fmt::format(
      "{:.1f} s are left of {}: a slow save takes {:.1f} s, a slow step {:.2f} s, the margin is {:g} s",
      left_.count(), name_, slow_save_.count(), slow_step_.count(), margin_.count());
}

}  // namespace lockstep
