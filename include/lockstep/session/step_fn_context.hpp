#pragma once

#include <string_view>

#include <lockstep/session/raw_session.hpp>

namespace lockstep {

/// What a function given to MonitoredSession::run_step_fn gets (tf's StepContext of run_step_fn).
class StepFnContext {
 public:
  virtual ~StepFnContext() = default;

  /// The session below the hooks. Not to be kept.
  virtual RawSession& session() = 0;

  /// A step with all hooks, as MonitoredSession::run. Collective. Returns the values, reduced; none when the
  /// input ended. Throws what it throws; and UsageError when an earlier step with hooks of this function
  /// stopped the session: return from the function then.
  virtual StepValues run_with_hooks(const RawSession::Step& step, const Feeds& feeds = {}) = 0;

  /// Leaves the function, and stops all ranks before another step: a step that others are in is dropped.
  /// May be called on one rank or on all. Does not return.
  [[noreturn]] virtual void request_stop(std::string_view reason = "the step function asked to stop") = 0;
};

}  // namespace lockstep
