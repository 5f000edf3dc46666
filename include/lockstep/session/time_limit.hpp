#pragma once

#include <optional>
#include <string>

#include <lockstep/base/clock.hpp>

namespace lockstep {

/// When a run must be over, and whether it is time to leave: when less remains than two slow saves, two steps
/// and a margin take. (One save may be running when the last begins; and the step after the decision is still
/// made.)
///
/// Chief only: its clock decides, and its word travels with the ballot. Must not communicate.
class TimeLimit {
 public:
  /// `name` says in messages what ends ("the time limit of 60 s"). `end` is on the clock of `reached`.
  TimeLimit(Seconds end, Seconds margin, std::string name);

  /// Once a step, before its ballot leaves. `slow_save` is what a slow save takes.
  bool reached(Seconds now, Seconds slow_save);

  const std::string& name() const noexcept { return name_; }

  /// What has to fit into the rest, as `reached` last saw it: "12.1 s are left; ...".
  std::string describe() const;

 private:
  Seconds end_;
  Seconds margin_;
  std::string name_;
  std::optional<Seconds> last_;
  Seconds slow_step_{0};  ///< the slowest of late
  Seconds slow_save_{0};
  Seconds left_{0};
};

}  // namespace lockstep
