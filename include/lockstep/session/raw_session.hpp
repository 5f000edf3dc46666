#pragma once

#include <cstdint>
#include <functional>

#include <lockstep/session/step_context.hpp>

namespace lockstep {

/// A session without its hooks: the state, and what the ranks do together. Made by a SessionCreator; one
/// thread uses it.
class RawSession {
 public:
  using Step = std::function<StepValues(StepContext&)>;

  virtual ~RawSession() = default;
  RawSession() = default;
  RawSession(const RawSession&) = delete;
  RawSession& operator=(const RawSession&) = delete;

  virtual State& state() = 0;                    ///< Local.
  virtual int rank() const = 0;                  ///< Local.
  virtual int ranks() const = 0;                 ///< Local.
  virtual std::int64_t global_step() const = 0;  ///< Local; the same on all ranks between steps.

  /// Runs `step` without hooks, for what is no training step (an evaluation, a sum over ranks): the global
  /// step stays; timers and saves wait for the next step with hooks. Whatever ends the run (a wish, a signal,
  /// the time limit, a thread) is heard here, too, and should_stop() is then true; a step function goes on to
  /// its end. Returns the values, reduced. Collective; throws as MonitoredSession::run, and EndOfInput on all
  /// ranks when the input of one ended.
  virtual StepValues run(const Step& step) = 0;
};

}  // namespace lockstep
