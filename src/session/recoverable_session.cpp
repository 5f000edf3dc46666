#include "recoverable_session.hpp"

#include <exception>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/session/aborted_error.hpp>

namespace lockstep {
namespace {

constexpr std::string_view kClosedByProgram = "closed by the program";

void check(const MonitoredSessionOptions& options, const SessionGround& ground) {
  const auto limit = [](double seconds, std::string_view name) {
    if (!(seconds >= 0)) {
      throw UsageError(fmt::format("{} is {}; give seconds above 0, or 0 for no limit", name, seconds));
    }
  };
  limit(ground.options.max_wait_secs, "max_wait_secs");
  limit(ground.config.max_run_secs, "max_run_secs");
  limit(ground.config.time_margin_secs, "time_margin_secs");
  if (!(options.stop_grace_period_secs >= 0)) {
    throw UsageError(
        fmt::format("stop_grace_period_secs is {}; give the seconds that threads and hooks get to "
                    "end, or 0 for none",
                    options.stop_grace_period_secs));
  }
  if (ground.config.share_parameters && ground.state.frozen()) {
    throw UsageError(
        "share_parameters needs a state that the session freezes: memory that is already there cannot be "
        "shared; do not call freeze");
  }
}

}  // namespace

RecoverableSession::RecoverableSession(std::shared_ptr<SessionCreator> creator,
                                       MonitoredSessionOptions options, bool recovers)
    : creator_(std::move(creator)),
      ground_(creator_->ground()),
      recovers_(recovers),
      grace_(options.stop_grace_period_secs),
      hooked_(ground_, options.hooks, options.chief_only_hooks, recovers) {
  ground_.meet();
  std::string hooks;
  try {
    ground_.together("", [&] {
      check(options, ground_);
      hooks = hooked_.describe();
    });
  } catch (const AgreedFailure& failure) {
    std::rethrow_exception(failure.error);
  }
  ground_.compare({{"hooks", std::move(hooks)},
                   {"how long to let things end",
                    fmt::format("stop_grace_period_secs = {}", options.stop_grace_period_secs)}});
  try {
    hooked_.begin();
    again_while_aborted([] {});
  } catch (const AgreedFailure& failure) {
    try {
      std::rethrow_exception(failure.error);
    } catch (const std::exception& error) {
      hooked_.tell_error(error);
      if (!failure.phase.empty()) ground_.log.warn(describe(failure));
      // Where the directory is ours, scripts look there for how the run ended.
      ground_.write_status("failed", exit_code_of(error), error.what());
      ground_.part();
      release_directory();
      throw;
    }
  } catch (const DeadlineExceeded& missing) {
    hooked_.tell_error(missing);
    release_directory();  // whose status is as it was: scripts launch again
    throw;
  } catch (const std::exception& error) {
    hooked_.tell_error(error);
    ground_.write_status("failed", exit_code_of(error), error.what());
    release_directory();
    throw;
  }
}

RecoverableSession::~RecoverableSession() {
  try {
    release_directory();
  } catch (const std::exception& error) {
    ground_.log.error(error.what());
  }
}

void RecoverableSession::release_directory() {
  hooked_.release_saver();
  ground_.directory.reset();
  ground_.owns_directory = false;
}

void RecoverableSession::make_session() {
  session_ = std::make_unique<CoordinatedSession>(*creator_, hooked_, grace_, [&](CreatedSession& created) {
    report_start(created);
    ground_.write_status("running", std::nullopt, "");
  });
}

/// Repeats what ends in a recoverable failure on a session that was made anew; `work` then starts over. A
/// failure that comes back every time is no passing one.
template <class Work>
void RecoverableSession::again_while_aborted(Work&& work) {
  for (;;) {
    try {
      const bool again = session_ == nullptr;
      if (again) make_session();
      // The checkpoint that it goes on from may be that of the last step.
      if (!again || !hooked_.stopping()) work();
      return;
    } catch (const AgreedFailure& told) {
      if (!recovers_ || !told.recoverable) throw;
      // Once all know of a lost thread, it is told by whoever leaves first.
      const AgreedFailure failure = hooked_.thread_failure().value_or(told);
      if (recoveries_ >= ground_.config.max_recoveries) throw AgreedFailure(failure);
      recover(failure);
    }
  }
}

void RecoverableSession::recover(const AgreedFailure& failure) {
  ++recoveries_;
  ground_.log.warn(
      fmt::format("{}; the session is made again from the newest checkpoint", describe(failure)));
  if (session_) {
    session_->stop_threads();
    // Those of another rank may take all of their grace; what the ranks share goes with the session.
    const double limit = ground_.comm.policy().limit.count();
    patient(ground_.comm, limit == 0 ? 0 : limit + grace_.count()).barrier("all ranks to stop their threads");
  }
  session_.reset();
  hooked_.forget_stop();
}

void RecoverableSession::report_start(const CreatedSession& created) {
  if (std::exchange(reported_, true)) return;
  if (created.restored()) restored_from_ = created.restored()->name;
  const Topology& topology = *ground_.topology;
  ground_.log.info(fmt::format("{} rank{} on {} node{}, {} reduction{}", ground_.comm.size(),
                               ground_.comm.size() == 1 ? "" : "s", topology.nodes,
                               topology.nodes == 1 ? "" : "s", created.reducer().name(),
                               ground_.config.share_parameters ? ", parameters shared within nodes" : ""));
  std::string names;
  for (const auto& hook : hooked_.hooks()) names += (names.empty() ? "" : ", ") + hook->describe();
  if (!names.empty()) ground_.log.info("hooks: " + names);
  if (ground_.carried) {
    ground_.log.info(fmt::format("goes on after step {} with the values in memory", *ground_.carried));
  } else if (!ground_.options.checkpoint_dir.empty() && restored_from_.empty()) {
    ground_.log.info(fmt::format("a new run in {}", ground_.options.checkpoint_dir.string()));
  }
}

void RecoverableSession::require_running(const char* what) const {
  if (closed_) throw UsageError(fmt::format("{}() after close(); make another session to go on", what));
  if (hooked_.stopping()) {
    throw UsageError(fmt::format("{}() although should_stop() is true; test it before each step", what));
  }
}

/// What a step threw that was run by `raw_session`, to whoever ran it.
void RecoverableSession::heed_raw_steps() {
  try {
    session_->created().take_news();
  } catch (const AgreedFailure& failure) {
    fail(failure);
  } catch (const DeadlineExceeded& missing) {
    lose(missing);
    throw;
  }
}

StepValues RecoverableSession::run(const RawSession::Step& step, const Feeds& feeds) {
  require_running("run");
  heed_raw_steps();
  StepValues values;
  try {
    again_while_aborted([&] { values = hooked_.run(step, feeds); });
    recoveries_ = 0;
  } catch (const AgreedFailure& failure) {
    fail(failure);
  } catch (const std::exception& error) {
    lose(error);
    throw;
  }
  return values;
}

void RecoverableSession::run_step_fn(const std::function<void(StepFnContext&)>& step_fn) {
  require_running("run_step_fn");
  heed_raw_steps();
  try {
    again_while_aborted([&] { hooked_.run_step_fn(step_fn); });
    recoveries_ = 0;
  } catch (const AgreedFailure& failure) {
    fail(failure);
  } catch (const std::exception& error) {
    lose(error);
    throw;
  }
}

void RecoverableSession::close() {
  if (closed_) return;
  heed_raw_steps();
  if (!hooked_.stopping()) {
    hooked_.set_stopping({.reason = std::string(kClosedByProgram),
                          .by = "the program",
                          .rank = StopCause::kAll,
                          .step = ground_.state.global_step(),
                          .early = false});
  }
  try {
    // A failure of `end` does not undo the end.
    bool ended = false;
    try {
      session_->created().agree_to_close();
      // By now the cause is the same on all ranks, whatever each knew when it came here.
      if (hooked_.cause().reason == kClosedByProgram) hooked_.heed_wishes();
      try {
        hooked_.raise_thread_failure();
      } catch (const AgreedFailure& lost) {
        if (!recovers_ || !lost.recoverable) throw;
        ground_.log.warn(fmt::format("{}; no step needs it any more", describe(lost)));
      }
      closed_ = ended = true;
      session_->end(recovers_);
    } catch (const AgreedFailure& failure) {
      if (!ended) fail(failure);
      ground_.log.warn(describe(failure));
      report_failure(failure);
    }
  } catch (const DeadlineExceeded& missing) {
    if (!closed_) lose(missing);
    throw;
  }
  const StopCause& cause = hooked_.cause();
  ground_.write_status(cause.early ? "stopped" : "done", cause.early ? ExitCode::try_again : ExitCode::done,
                       cause.reason);
  ground_.log.info(fmt::format("stopped after step {}: {}", ground_.state.global_step(), to_string(cause)));
  // The chief leaves last: nobody finds it gone while it still saves.
  ground_.comm.barrier("the chief to end the session");
  release_directory();
}

/// Ends the session with an error that all ranks have.
void RecoverableSession::fail(const AgreedFailure& failure) {
  closed_ = true;
  hooked_.stop_for_error(failure);
  try {
    std::rethrow_exception(failure.error);
  } catch (const std::exception& error) {
    hooked_.tell_error(error);
  }
  if (!failure.phase.empty()) ground_.log.warn(describe(failure));
  report_failure(failure);
}

/// A rank is missing, so nothing can be agreed any more: each rank ends by itself.
void RecoverableSession::lose(const std::exception& error) {
  closed_ = true;
  hooked_.stop_for_loss(error);
  hooked_.tell_error(error);
  ground_.log.warn(fmt::format("stopped after step {}: {}", ground_.state.global_step(), error.what()));
}

void RecoverableSession::report_failure(const AgreedFailure& failure) {
  try {
    std::rethrow_exception(failure.error);
  } catch (const std::exception& error) {
    ground_.write_status("failed", exit_code_of(error), error.what());
    ground_.comm.barrier("the chief to report an error");
    ground_.part();
    if (session_) session_->stop_threads();
    release_directory();
    throw;
  }
}

void RecoverableSession::abandon() noexcept {
  closed_ = true;
  ground_.part();
  const std::string problem = fmt::format(
      "an exception left the program after step {}; what came after the newest checkpoint is lost",
      ground_.state.global_step());
  try {
    ground_.log.error(problem);
    ground_.write_status("failed", ExitCode::internal, problem);
  } catch (const std::exception&) {
    // The exception under way says more.
  }
}

Coordinator& RecoverableSession::coordinator() {
  if (!session_) throw UsageError("the session is closed");
  return session_->coordinator();
}

}  // namespace lockstep
