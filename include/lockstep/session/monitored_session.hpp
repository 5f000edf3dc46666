#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <lockstep/hooks/session_run_hook.hpp>
#include <lockstep/session/coordinator.hpp>
#include <lockstep/session/session_creator.hpp>
#include <lockstep/session/step_fn_context.hpp>
#include <lockstep/session/stop_cause.hpp>

namespace lockstep {

class RecoverableSession;

struct MonitoredSessionOptions {
  std::vector<std::shared_ptr<SessionRunHook>> hooks = {};             ///< on every rank, the same list
  std::vector<std::shared_ptr<SessionRunHook>> chief_only_hooks = {};  ///< used on the chief alone

  /// How long threads of the coordinator get to end; and, on a signal or at the time limit, the `end` of
  /// hooks.
  double stop_grace_period_secs = 120;
};

/// Trains in steps, the same on all ranks, with hooks around them (tf.train.MonitoredSession). The chief,
/// rank 0, initializes or restores the state, saves and writes summaries; all ranks run every step together.
///
///     created -> running -> stopping -> closed
///                   \__________________/
///                     (an error of any rank: closed, thrown on all)
///
/// Layers, outermost first: one that makes the session anew when something was aborted, one with the threads
/// of hooks (Coordinator), one with the hooks, and the RawSession.
///
/// One thread uses it. Every function is collective over the creator's communicator unless it says otherwise.
/// Errors, unless noted, are thrown on all ranks with the same text, which names the rank where one other
/// than the chief failed; the chief's log has rank, step and phase. An exception whose type is not of this
/// library keeps type and text on the rank that threw it; the others throw TrainingError with its text.
///
/// What a rank throws after its step has reduced, the others hear of in their next step or in close: a
/// program that lets its ranks communicate between steps must do that in a hook or in the step.
///
/// Recovery: when all that failed threw AbortedError, all ranks make the session anew: threads are stopped,
/// the newest checkpoint is restored (or the first values made), after_create_session is called, and the call
/// is repeated from before_run. What came after the checkpoint is done again. So count steps by should_stop
/// or global_step, not by calls. After SessionConfig::max_recoveries in a row without a completed step the
/// error is thrown. A thread that was lost counts: the step in which all hear of it fails, whatever else was
/// thrown after its ballots had left; in `close` it is only logged, since nothing needs it any more.
///
/// Where a rank does not come within the limit of the communicator, the others throw DeadlineExceeded, each
/// for itself and with its own text, after `on_error` of their hooks.
class MonitoredSession {
 public:
  using Step = RawSession::Step;

  /// Meets the other ranks, at most max_wait_secs; compares hooks, options, model and program; then `begin`
  /// of all hooks, SessionCreator::create_session, and `after_create_session`.
  ///
  /// Throws UsageError for options that make no sense; EnvironmentError when ranks differ; and what
  /// MonitoredTrainingSession and the creator throw.
  explicit MonitoredSession(std::shared_ptr<SessionCreator> creator, MonitoredSessionOptions options = {});

  /// Closes, but never throws; while an exception unwinds it only reports.
  ~MonitoredSession();
  MonitoredSession(const MonitoredSession&) = delete;
  MonitoredSession& operator=(const MonitoredSession&) = delete;

  /// Local; the same on all ranks between steps.
  bool should_stop() const noexcept;

  /// One step with all hooks. All ranks run steps of the same kind (with the same reductions, and values of
  /// the same names) in the same order; else EnvironmentError. Returns the step's values, reduced; none when
  /// the input ended. Not after should_stop() (UsageError). An exception of `step` or of a hook on any rank
  /// is thrown on all; the session is then over. `feeds`: what this rank's step finds in
  /// StepContext::feeds(), beside what hooks feed.
  StepValues run(const Step& step, const Feeds& feeds = {});

  /// Calls `step_fn`, which may run steps without hooks and with them, and ask to stop. Throws as `run`. On a
  /// recovery all of it is called again. All ranks pass a function that runs the same steps.
  void run_step_fn(const std::function<void(StepFnContext&)>& step_fn);

  /// The same for a function with a result: returns it; nullopt when the function asked to stop or the input
  /// ended in it.
  template <class StepFn, class Result = std::invoke_result_t<StepFn&, StepFnContext&>>
  requires(!std::is_void_v<Result>) std::optional<Result> run_step_fn(StepFn&& step_fn) {
    std::optional<Result> result;
    const std::function<void(StepFnContext&)> call = [&](StepFnContext& context) {
      result.reset();
      result.emplace(step_fn(context));
    };
    run_step_fn(call);
    return result;
  }

  /// Runs `step` until something asks to stop, then closes (the with-block).
  void train(const Step& step);

  /// Ends the hooks, saves, stops the threads, and lets the chief leave last. May be called again, and does
  /// nothing then. Throws what a thread has thrown (no hook has then ended, and nothing is saved), or the end
  /// of a hook (the other hooks have ended and the save is made).
  void close();

  /// This rank asks to stop: all do after the next step that is run. Local.
  void request_stop(std::string_view reason);

  /// This rank asks for a checkpoint after the next step. Local.
  void save_now();

  /// Where summaries of the user go; does nothing on ranks that are not the chief. Local.
  SummaryWriter& summary() noexcept;

  /// For threads of the program. Of the present session: a recovery brings another. Local; throws UsageError
  /// where a recovery failed and left none.
  Coordinator& coordinator();

  std::int64_t global_step() const noexcept;  ///< Local; the same on all ranks between steps.

  const StopCause& stop_cause() const noexcept;     ///< Local; the same on all ranks, unless one is lost.
  const std::string& stop_reason() const noexcept;  ///< As `stop_cause`; empty while running.
  bool stopped_early() const noexcept;  ///< Local. By signal or time limit: launch again to go on.
  const std::string& restored_from() const noexcept;  ///< Local. Base name of a checkpoint, or empty.
  const Reducer& reducer() const;                     ///< Local; throws as `coordinator`.
  const Topology& topology() const noexcept;          ///< Local.

 protected:
  MonitoredSession(std::shared_ptr<SessionCreator> creator, MonitoredSessionOptions options, bool recovers);
  RecoverableSession& layers() noexcept { return *session_; }

 private:
  std::unique_ptr<RecoverableSession> session_;
};

/// The same without recovery: AbortedError is an error like any other (tf.train.SingularMonitoredSession).
class SingularMonitoredSession final : public MonitoredSession {
 public:
  explicit SingularMonitoredSession(std::shared_ptr<SessionCreator> creator,
                                    MonitoredSessionOptions options = {});

  /// The session below the hooks; null once closed. Local.
  RawSession* raw_session() noexcept;
};

}  // namespace lockstep
