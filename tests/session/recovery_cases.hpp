#pragma once

#include <bit>
#include <cmath>

#include <lockstep/hooks/checkpoint_saver.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/reduce/canonical_tree.hpp>
#include <lockstep/session/aborted_error.hpp>

#include "session_support.hpp"

// Recovery, step functions, threads and ranks without data, for programs that say on which ranks to try them.
// Checks never leave early.

namespace lockstep {

/// A claim on the ranks of this program, each of them in turn the one that differs. Defined by the program.
void with_each(const std::function<void(const Communicator& world, bool me, int who)>& check);

using test::contains;
using test::Rank;
using test::Recorder;
using test::same_on_all;
using test::SharedFolder;
using test::Steps;
using test::thrown;

// TF: MonitoredSession.test_retry_on_aborted_error
// TF: MonitoredSession.test_recover_and_retry_on_aborted_error
TEST_CASE("an aborted step is repeated by all from the newest checkpoint, or from the first values") {
  with_each([](const Communicator& world, bool me, int) {
    for (const bool saves : {false, true}) {
      for (const std::string_view phase : {"before_run", "step", "late step", "after_run"}) {
        CAPTURE(phase);
        const SharedFolder folder(world);
        Rank rank(world);
        auto options = rank.options(saves ? folder.path : std::filesystem::path());
        options.save_checkpoint_steps = 1;
        bool aborts = me;
        const auto abort_once = [&](std::string_view now, std::int64_t step) {
          if (now != phase || step != 2 || !aborts) return;
          aborts = false;
          throw AbortedError("gone");
        };
        const auto recorder = std::make_shared<Recorder>([&](std::string_view now, RunContext& context) {
          abort_once(now, context.global_step() - (now == "after_run" ? 1 : 0));
        });
        options.hooks = {recorder, std::make_shared<StopAtStepHook>(std::nullopt, 5)};
        MonitoredTrainingSession session(world, rank.state, options);
        const auto error = thrown([&] {
          session.train([&](StepContext& step) {
            abort_once("step", step.number());
            const auto values = test::gradient_step(step);
            abort_once("late step", step.number());
            return values;
          });
        });
        CHECK(error == "");
        CHECK(session.global_step() == 5);
        CHECK(session.stop_reason() == "reached step 5");
        CHECK(rank.state.parameters()[0] == 1.0F - 5 * 0.25F);
        CHECK(recorder->count("begin") == 1);
        CHECK(recorder->count("after_create_session") == 2);
        CHECK(recorder->count("end") == 1);
        CHECK(recorder->count("on_error") == 0);
        // From the newest of its own: that of the step before, or of the step itself.
        if (world.is_chief()) {
          const bool newest = rank.messages->contain("restored checkpoint ckpt-00000002.h5") ||
                              rank.messages->contain("restored checkpoint ckpt-00000003.h5");
          CHECK(newest == saves);
          CHECK(rank.messages->contain("restored checkpoint") == saves);
        }
      }
    }
  });
}

// TF: MonitoredSession.test_retry_on_unavailable_error
TEST_CASE("without checkpoints the call that was aborted does the first step again, and says so") {
  with_each([](const Communicator& world, bool me, int) {
    Rank rank(world);
    MonitoredTrainingSession session(world, rank.state, rank.options());
    bool fails = me;
    Steps after;
    for (int i = 0; i < 4; ++i) {
      session.run([&](StepContext& step) {
        if (step.number() == 2 && std::exchange(fails, false)) throw UnavailableError("away");
        return test::gradient_step(step);
      });
      after.push_back(session.global_step());
    }
    CHECK(after == Steps{1, 2, 1, 2});
    CHECK(rank.state.parameters()[0] == 0.5F);
    session.close();
  });
}

// TF: MonitoredSession.test_retry_initialization_on_aborted_error
TEST_CASE("a creation that is aborted once is repeated") {
  with_each([](const Communicator& world, bool me, int) {
    for (const bool by_chief : {false, true}) {
      Rank rank(world);
      auto options = rank.options();
      bool aborts = me;
      int created = 0;
      const auto abort_once = [&] {
        if (std::exchange(aborts, false)) throw UnavailableError("not yet");
      };
      options.scaffold.init_fn = [&](State& state) {
        if (by_chief) abort_once();
        state.parameters()[0] = 1;
      };
      options.scaffold.ready_for_local_init = [&](const State&) {
        ++created;
        return Scaffold::Names{};
      };
      options.scaffold.local_init = [&](State&) {
        if (!by_chief) abort_once();
      };
      MonitoredTrainingSession session(world, rank.state, options);
      session.run(test::gradient_step);
      CHECK(created == (by_chief ? 1 : 2));
      CHECK(rank.state.parameters()[0] == 0.75F);
      session.close();
    }
  });
}

/// A creator that makes so many sessions, and counts them.
template <class Base>
class Limited final : public Base {
 public:
  Limited(Communicator world, State& state, SessionCreatorOptions options, int limit)
      : Base(std::move(world), state, std::move(options)), left_(limit) {}

  std::unique_ptr<RawSession> create_session() override {
    if (left_ == 0) throw DataError("no more sessions");
    --left_;
    return Base::create_session();
  }

 private:
  int left_;
};

inline std::shared_ptr<SessionCreator> make_limited(Rank& rank,
                                                    const MonitoredTrainingSessionOptions& options,
                                                    int limit) {
  SessionCreatorOptions its{
      .checkpoint_dir = options.checkpoint_dir, .scaffold = options.scaffold, .config = options.config};
  if (rank.world.is_chief()) {
    return std::make_shared<Limited<ChiefSessionCreator>>(rank.world, rank.state, std::move(its), limit);
  }
  return std::make_shared<Limited<WorkerSessionCreator>>(rank.world, rank.state, std::move(its), limit);
}

// TF: RecoverableSession.test_recovery
TEST_CASE("sessions lost after 1, 2 and 3 steps are made again, and then the maker's own error comes out") {
  with_each([](const Communicator& world, bool me, int) {
    Rank rank(world);
    const auto recorder = std::make_shared<Recorder>();
    MonitoredSession session(make_limited(rank, rank.options(), 3), {.hooks = {recorder}});
    Steps after;
    const auto error = thrown([&] {
      for (int i = 0; i < 20; ++i) {
        session.run([&](StepContext& step) {
          if (me && step.number() == recorder->count("after_create_session")) throw AbortedError("gone");
          return test::gradient_step(step);
        });
        after.push_back(session.global_step());
      }
    });
    CHECK(after == Steps{1, 1, 2, 1, 2, 3});
    CHECK(error == "DataError: no more sessions");
    CHECK(recorder->count("begin") == 1);
    CHECK(recorder->count("after_create_session") == 3);
    CHECK(recorder->count("end") == 0);
    CHECK(recorder->count("on_error") == 1);
    CHECK(session.should_stop());
    CHECK(session.stop_reason() == "no more sessions");
    CHECK(contains(thrown([&] { session.run(test::plain_step); }), "run() after close()"));
    CHECK(contains(thrown([&] { session.reducer(); }), "the session is closed"));
    session.close();
  });
}

TEST_CASE("a session that cannot be made again, since no checkpoint is good any more, ends with that error") {
  with_each([](const Communicator& world, bool me, int) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.save_checkpoint_steps = 1;
    const auto recorder = std::make_shared<Recorder>();
    options.hooks = {recorder};
    MonitoredTrainingSession session(world, rank.state, options);
    const auto error = thrown([&] {
      session.train([&](StepContext& step) {
        if (step.number() == 2) {
          if (world.is_chief()) {
            for (const auto& entry : PosixFileSystem().open_directory(folder.path)->list()) {
              if (entry.name.starts_with("ckpt-")) std::filesystem::resize_file(folder.path / entry.name, 99);
            }
          }
          if (me) throw AbortedError("gone");
        }
        return test::gradient_step(step);
      });
    });
    CHECK(error.starts_with("DataError: "));
    CHECK(same_on_all(world, error));
    CHECK(recorder->count("on_error") == 1);
    CHECK(session.should_stop());
    if (world.is_chief()) {
      CHECK(folder.status().state == "failed");
      CHECK(folder.status().exit_code == 65);
      CHECK(!folder.locked());
    }
  });
}

TEST_CASE("what is aborted every time is an error in the end") {
  with_each([](const Communicator& world, bool me, int) {
    Rank rank(world);
    auto options = rank.options();
    options.config.max_recoveries = 3;
    MonitoredTrainingSession session(world, rank.state, options);
    int tries = 0;
    const auto error = thrown([&] {
      session.run([&](StepContext& step) {
        ++tries;
        if (me) throw AbortedError("never there");
        return test::gradient_step(step);
      });
    });
    CHECK(contains(error, "never there"));
    CHECK(same_on_all(world, error));
    CHECK(tries == 4);
  });
}

TEST_CASE("what is aborted now and then is none, however often: only failures in a row count") {
  with_each([](const Communicator& world, bool me, int) {
    for (const bool hooked : {false, true}) {
      CAPTURE(hooked);
      const SharedFolder folder(world);
      Rank rank(world);
      auto options = rank.options(folder.path);
      options.config.max_recoveries = 1;
      options.save_checkpoint_steps = 1;
      options.save_checkpoint_secs = std::nullopt;
      MonitoredTrainingSession session(world, rank.state, options);
      for (int step = 1; step <= 3; ++step) {
        bool fails = me;
        const auto work = [&](StepContext& context) {
          if (std::exchange(fails, false)) throw AbortedError("now and then");
          return test::gradient_step(context);
        };
        if (hooked) {
          session.run_step_fn([&](StepFnContext& context) { context.run_with_hooks(work); });
        } else {
          session.run(work);
        }
        CHECK(session.global_step() == step);
      }
      session.close();
    }
  });
}

TEST_CASE("a session that is made again at its last step makes no further one") {
  with_each([](const Communicator& world, bool me, int) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.save_checkpoint_steps = 1;
    options.save_checkpoint_secs = std::nullopt;
    const auto recorder = std::make_shared<Recorder>();
    options.hooks = {recorder, std::make_shared<StopAtStepHook>(std::nullopt, 2)};
    MonitoredTrainingSession session(world, rank.state, options);
    session.run(test::gradient_step);
    // A thread is lost; all hear of it with the second step, which is saved by then.
    if (me) session.coordinator().stop_on_exception([] { throw AbortedError("lost the feed"); }, "feeder");
    session.run(test::gradient_step);
    CHECK(recorder->count("after_create_session") == 2);
    CHECK(recorder->count("after_run") == 2);
    CHECK(session.global_step() == 2);
    CHECK(session.should_stop());
    session.close();
    CHECK(session.stop_reason() == "reached step 2");
  });
}

TEST_CASE("of ranks that all state something else, the first that differs is named alone") {
  with_each([](const Communicator& world, bool, int) {
    if (world.size() == 1) return;
    Rank rank(world);
    rank.state.setting("seed", std::to_string(world.rank()));
    const auto error =
        thrown([&] { const MonitoredTrainingSession session(world, rank.state, rank.options()); });
    CHECK(contains(error, "rank 0 has 'seed = 0', rank 1 has 'seed = 1'"));
    CHECK(same_on_all(world, error));
  });
}

// TF: SingularMonitoredSession.test_do_not_handle_aborted_error
TEST_CASE("a singular session does not recover") {
  with_each([](const Communicator& world, bool me, int) {
    Rank rank(world);
    const auto options = rank.options();
    SingularMonitoredSession session(
        make_session_creator(world, rank.state, {.scaffold = options.scaffold, .config = options.config}));
    CHECK(session.raw_session() != nullptr);
    int calls = 0;
    const auto error = thrown([&] {
      session.run([&](StepContext& step) {
        ++calls;
        if (me) throw AbortedError("gone");
        return test::gradient_step(step);
      });
    });
    CHECK(contains(error, "gone"));
    CHECK(same_on_all(world, error));
    CHECK(calls == 1);
    CHECK(session.raw_session() == nullptr);
  });
}

// TF: MonitoredSession.test_step_fn_with_hooks, MonitoredSession.test_step_fn_example
TEST_CASE("a step function runs steps without hooks and with them") {
  with_each([](const Communicator& world, bool, int) {
    Rank rank(world);
    auto options = rank.options();
    std::vector<std::string> order;
    const auto recorder =
        std::make_shared<Recorder>([&](std::string_view now, RunContext&) { order.emplace_back(now); });
    options.hooks = {recorder, std::make_shared<StopAtStepHook>(std::nullopt, 3)};
    MonitoredTrainingSession session(world, rank.state, options);
    double raw = -1;
    while (!session.should_stop()) {
      order.clear();
      session.run_step_fn([&](StepFnContext& context) {
        raw = *context.session()
                   .run([&](StepContext& step) {
                     order.emplace_back("raw");
                     return StepValues{{"mine", static_cast<double>(step.rank())}};
                   })
                   .find("mine");
        const auto values = context.run_with_hooks([&](StepContext& step) {
          order.emplace_back("hooked");
          return test::gradient_step(step);
        });
        CHECK(values.find("loss") == test::mean_rank(world));
      });
      CHECK(raw == test::mean_rank(world));
      CHECK(order == std::vector<std::string>{"raw", "before_run", "hooked", "after_run"});
    }
    CHECK(session.global_step() == 3);
    CHECK(recorder->count("before_run") == 3);
    session.close();
  });
}

// TF: MonitoredSession.test_step_fn_with_hooks_and_request_stop, MonitoredSession.test_step_function_stops
TEST_CASE("a step function of one rank asks to stop: all do, and the step that others are in is dropped") {
  with_each([](const Communicator& world, bool me, int who) {
    for (const bool late : {false, true}) {
      CAPTURE(late);
      Rank rank(world);
      auto options = rank.options();
      const auto recorder = std::make_shared<Recorder>();
      options.hooks = {recorder};
      MonitoredTrainingSession session(world, rank.state, options);
      for (int i = 0; i < 20 && !session.should_stop(); ++i) {
        session.run_step_fn([&](StepFnContext& context) {
          const bool now = me && session.global_step() == 2;
          if (now && !late) context.request_stop("enough");
          context.run_with_hooks(test::gradient_step);
          if (now && late) context.request_stop("enough");
        });
      }
      CHECK(session.global_step() == (late ? 3 : 2));
      CHECK(session.stop_reason() == "enough on rank " + std::to_string(who));
      CHECK(recorder->count("after_run") == session.global_step());
      // Others may be in the step that is dropped; on this rank no hook is called for it.
      CHECK(recorder->count("before_run") == session.global_step() + (me ? 0 : 1));
      session.close();
      CHECK(recorder->count("end") == 1);
    }
  });
}

TEST_CASE("an error in a step function, in a step without hooks or beside it, reaches all") {
  with_each([](const Communicator& world, bool me, int who) {
    for (const std::string_view where : {"before", "raw", "after"}) {
      CAPTURE(where);
      Rank rank(world);
      MonitoredTrainingSession session(world, rank.state, rank.options());
      const auto error = thrown([&] {
        while (!session.should_stop() && session.global_step() < 5) {
          session.run_step_fn([&](StepFnContext& context) {
            const bool now = me && session.global_step() == 1;
            if (now && where == "before") throw DataError("boom");
            context.session().run([&](StepContext&) -> StepValues {
              if (now && where == "raw") throw DataError("boom");
              return {};
            });
            context.run_with_hooks(test::gradient_step);
            if (me && session.global_step() == 2 && where == "after") throw DataError("boom");
          });
        }
      });
      CHECK(error ==
            std::string("DataError: ") + (who == 0 ? "" : "rank " + std::to_string(who) + ": ") + "boom");
    }
  });
}

/// The ways to a step: with hooks, in a step function with hooks, and there without.
enum class Way { run, hooks, raw };

inline void go(MonitoredSession& session, Way way, const MonitoredSession::Step& step) {
  if (way == Way::run) {
    session.run(step);
    return;
  }
  session.run_step_fn([&](StepFnContext& context) {
    if (way == Way::hooks) {
      context.run_with_hooks(step);
    } else {
      context.session().run(step);
    }
  });
}

/// Tells each rank's coordinator of an error, as a thread of its own would.
template <class Error>
void report(MonitoredSession& session) {
  session.coordinator().stop_on_exception([] { throw Error("lost the feed"); }, "feeder");
}

// TF: RecoverableSession.test_recovery_from_coordinator_exception
// TF: RecoverableSession.test_step_fn_recovery_from_coordinator_exception_when_run_hooks
// TF: RecoverableSession.test_step_fn_recovery_from_coordinator_exception_with_raw_session
TEST_CASE("a thread that is lost is no stop: all ranks make the session anew and repeat the step") {
  with_each([](const Communicator& world, bool me, int) {
    for (const Way way : {Way::run, Way::hooks, Way::raw}) {
      CAPTURE(static_cast<int>(way));
      Rank rank(world);
      auto options = rank.options();
      const auto recorder = std::make_shared<Recorder>();
      options.hooks = {recorder};
      MonitoredTrainingSession session(world, rank.state, options);
      for (int i = 0; i < 3; ++i) {
        if (me && i == 1) report<AbortedError>(session);
        CHECK(!session.should_stop());
        go(session, way, test::plain_step);
        CHECK(recorder->count("after_create_session") == (i == 0 ? 1 : 2));
      }
      CHECK(!session.should_stop());
      // No checkpoint: the first values again, and the call that was under way is made again.
      CHECK(session.global_step() == (way == Way::raw ? 0 : 2));
      session.close();
      CHECK(session.stop_reason() == "closed by the program");
    }
  });
}

// TF: MonitoredSession.test_regular_exception_reported_to_coord_pass_through_run
// TF: SingularMonitoredSession.test_regular_exception_reported_to_coord_pass_through_run
// TF: RecoverableSession.test_recovery_from_non_preemption_in_coordinator
// TF: RecoverableSession.test_recovery_from_non_preemption_in_coordinator_when_run_hooks
// TF: RecoverableSession.test_recovery_from_non_preemption_in_coordinator_with_raw_session
TEST_CASE("another error of a thread: the next run works, all stop, no second session, and close throws it") {
  with_each([](const Communicator& world, bool me, int who) {
    for (const Way way : {Way::run, Way::hooks, Way::raw}) {
      for (const bool recovers : {true, false}) {
        CAPTURE(static_cast<int>(way));
        CAPTURE(recovers);
        const SharedFolder folder(world);
        Rank rank(world);
        const auto options = rank.options(folder.path);
        const auto recorder = std::make_shared<Recorder>();
        const auto saver =
            std::make_shared<CheckpointSaverHook>(CheckpointSaverHook::Options{.save_steps = 100});
        const MonitoredSessionOptions hooks{.hooks = {recorder, saver}};
        const auto creator = make_limited(rank, options, 2);
        const auto session = recovers ? std::make_unique<MonitoredSession>(creator, hooks)
                                      : std::make_unique<SingularMonitoredSession>(creator, hooks);
        int runs = 0;
        while (runs < 20 && !session->should_stop()) {
          if (me && runs == 2) report<DataError>(*session);
          go(*session, way, test::plain_step);
          ++runs;
        }
        CHECK(runs == 3);
        CHECK(recorder->count("after_create_session") == 1);
        CHECK(recorder->count("after_run") == (way == Way::raw ? 0 : 3));
        const auto error = thrown([&] { session->close(); });
        const std::string by = who == 0 ? "" : "rank " + std::to_string(who) + ": ";
        CHECK(error == "DataError: " + by + "lost the feed");
        CHECK(recorder->count("end") == 0);
        CHECK(recorder->count("on_error") == 1);
        if (world.is_chief()) {
          CHECK(folder.saved() == Steps{0});
          CHECK(rank.messages->contain("rank " + std::to_string(who) + " failed at step "));
          CHECK(rank.messages->contain(" in thread 'feeder': lost the feed"));
        }
      }
    }
  });
}

// TF: MonitoredSession.test_regular_exception_reported_to_coord_pass_through_return
TEST_CASE("an error of a thread that no step has heard of is thrown by close; a loss is forgiven there") {
  with_each([](const Communicator& world, bool me, int who) {
    for (const bool lost : {false, true}) {
      for (const bool recovers : {true, false}) {
        CAPTURE(lost);
        CAPTURE(recovers);
        Rank rank(world);
        const auto options = rank.options();
        const auto recorder = std::make_shared<Recorder>();
        const auto creator = make_limited(rank, options, 2);
        const auto session = recovers ? std::make_unique<MonitoredSession>(
                                            creator, MonitoredSessionOptions{.hooks = {recorder}})
                                      : std::make_unique<SingularMonitoredSession>(
                                            creator, MonitoredSessionOptions{.hooks = {recorder}});
        session->run(test::plain_step);
        if (me && lost) report<AbortedError>(*session);
        if (me && !lost) report<DataError>(*session);
        const auto error = thrown([&] { session->close(); });
        CHECK(session->should_stop());
        const bool forgiven = lost && recovers;
        const std::string by = who == 0 ? "" : "rank " + std::to_string(who) + ": ";
        CHECK(contains(error, forgiven ? "" : by + "lost the feed"));
        CHECK(error.empty() == forgiven);
        CHECK(recorder->count("end") == (forgiven ? 1 : 0));
        CHECK(recorder->count("on_error") == (forgiven ? 0 : 1));
        if (world.is_chief()) CHECK(rank.messages->contain(" in thread 'feeder': lost the feed"));
      }
    }
  });
}

// TF: RecoverableSession.test_recovery_from_session_getting_stuck
// TF: RecoverableSession.test_recovery_from_session_getting_stuck_when_run_hooks
// TF: RecoverableSession.test_recovery_from_session_getting_stuck_with_raw_session
TEST_CASE("a step that fails since a thread of its rank was lost is recovered, and no other") {
  with_each([](const Communicator& world, bool me, int who) {
    for (const Way way : {Way::run, Way::hooks, Way::raw}) {
      for (const bool lost : {true, false}) {
        CAPTURE(static_cast<int>(way));
        CAPTURE(lost);
        Rank rank(world);
        auto options = rank.options();
        const auto recorder = std::make_shared<Recorder>();
        options.hooks = {recorder};
        MonitoredTrainingSession session(world, rank.state, options);
        bool fails = me;
        int calls = 0;
        const auto error = thrown([&] {
          for (int i = 0; i < 3; ++i) {
            go(session, way, [&](StepContext& step) {
              if (++calls == 2 && std::exchange(fails, false)) {
                if (lost) report<AbortedError>(session);
                if (!lost) report<IoError>(session);
                throw DataError("nothing in the feed");
              }
              return test::plain_step(step);
            });
          }
        });
        CHECK(recorder->count("after_create_session") == (lost ? 2 : 1));
        CHECK(calls == (lost ? 4 : 2));
        const std::string by = who == 0 ? "" : "rank " + std::to_string(who) + ": ";
        CHECK(error == (lost ? "" : "DataError: " + by + "nothing in the feed"));
        CHECK(session.should_stop() == !lost);
        session.close();
      }
    }
  });
}

TEST_CASE("a thread that is lost once too often ends the run with that error") {
  with_each([](const Communicator& world, bool me, int) {
    Rank rank(world);
    auto options = rank.options();
    options.config.max_recoveries = 0;
    MonitoredTrainingSession session(world, rank.state, options);
    if (me) report<AbortedError>(session);
    const auto error = thrown([&] { session.run(test::plain_step); });
    CHECK(contains(error, "lost the feed"));
    CHECK(same_on_all(world, error));
    CHECK(session.should_stop());
  });
}

TEST_CASE("step functions without hooked steps hear of stops; what one still does with hooks, it does") {
  with_each([](const Communicator& world, bool me, int who) {
    for (const std::string_view cause : {"signal", "wish", "thread", "time"}) {
      for (const bool hooked : {false, true}) {
        CAPTURE(cause);
        CAPTURE(hooked);
        Rank rank(world);
        auto options = rank.options();
        options.config.max_run_secs = 10;
        MonitoredTrainingSession session(world, rank.state, options);
        int calls = 0;
        while (calls < 20 && !session.should_stop()) {
          ++calls;
          session.run_step_fn([&](StepFnContext& context) {
            if (me && calls == 3) {
              if (cause == "signal") rank.signals->raise(15);
              if (cause == "wish") session.request_stop("enough");
              if (cause == "thread") session.coordinator().request_stop("enough");
            }
            if (calls == 3 && cause == "time") rank.clock->advance(Seconds{11});
            for (int i = 0; i < 2; ++i) context.session().run(test::plain_step);
            if (hooked) context.run_with_hooks(test::gradient_step);
          });
        }
        CHECK(calls == 3);
        CHECK(session.global_step() == (hooked ? 3 : 0));
        const std::string by = who == 0 ? "" : " (asked by rank " + std::to_string(who) + ")";
        CHECK(session.stop_reason() == (cause == "signal" ? "SIGTERM on rank " + std::to_string(who)
                                        : cause == "time" ? std::string("the time limit of 10 s")
                                                          : "enough" + by));
        CHECK(session.stopped_early() == (cause == "signal" || cause == "time"));
        session.close();
      }
    }
  });
}

TEST_CASE(
    "a step function that heard of a stop and ends early on one rank does not leave the others waiting") {
  with_each([](const Communicator& world, bool me, int who) {
    Rank rank(world);
    MonitoredTrainingSession session(world, rank.state, rank.options());
    session.request_stop("enough");
    session.run_step_fn([&](StepFnContext& context) {
      context.session().run(test::plain_step);
      if (me) throw EndOfInput();
      context.run_with_hooks(test::plain_step);
    });
    CHECK(session.stop_reason() == "end of input on rank " + std::to_string(who));
    CHECK(session.global_step() == 0);
    CHECK(thrown([&] { session.close(); }) == "");
  });
}

TEST_CASE("a step function of one rank ends, others are asked to stop in the same step: one cause for all") {
  with_each([](const Communicator& world, bool me, int who) {
    for (const bool hooked : {false, true}) {
      CAPTURE(hooked);
      Rank rank(world);
      MonitoredTrainingSession session(world, rank.state, rank.options());
      for (int i = 0; i < 4 && !session.should_stop(); ++i) {
        session.run_step_fn([&](StepFnContext& context) {
          context.session().run(test::plain_step);
          if (i == 1 && me) context.request_stop("enough");
          if (i == 1) session.request_stop("more than enough");
          if (hooked) context.run_with_hooks(test::plain_step);
          if (!hooked) context.session().run(test::plain_step);
        });
      }
      CHECK(session.stop_reason() == "enough on rank " + std::to_string(who));
      CHECK(session.global_step() == (hooked ? 1 : 0));
      CHECK(same_on_all(world, to_string(session.stop_cause())));
      session.close();
    }
  });
}

TEST_CASE("a rank without data adds nothing: sum and means are those of the others, to the bit") {
  constexpr std::int64_t kMicroBatches = 6;
  with_each([](const Communicator& world, bool me, int who) {
    Rank rank(world);
    auto options = rank.options();
    options.config.micro_batches = kMicroBatches;
    MonitoredTrainingSession session(world, rank.state, options);
    const auto leaf = [](std::int64_t m) { return m == 1 ? -0.0F : 1.0F / static_cast<float>(3 + m); };
    // The tree over the micro-batches that are there: one without a partner passes up unchanged.
    std::vector<std::optional<float>> level;
    for (std::int64_t m = 0; m < kMicroBatches; ++m) {
      const auto owned = owned_range(kMicroBatches, who, world.size());
      const bool out = m >= owned.first && m < owned.last;
      level.push_back(out ? std::nullopt : std::optional(leaf(m)));
    }
    const auto present = std::ranges::count_if(level, [](const auto& value) { return value.has_value(); });
    while (level.size() > 1) {
      std::vector<std::optional<float>> next;
      for (std::size_t i = 0; i < level.size(); i += 2) {
        const auto left = level[i];
        const auto right = i + 1 < level.size() ? level[i + 1] : std::nullopt;
        next.push_back(left && right ? std::optional(*left + *right) : left ? left : right);
      }
      level = next;
    }
    bool stepped = false;
    session.train([&](StepContext& step) -> StepValues {
      StepValues values{{"loss", me ? 1e9 : 2.0}};
      const bool last = step.number() == 1;
      if (me || last) {
        step.contribute_nothing();
      } else {
        for (auto m = step.micro_batches().first; m < step.micro_batches().last; ++m) {
          const auto gradient = step.begin_micro_batch();
          std::ranges::fill(gradient, leaf(m));
          gradient[1] = -0.0F;  // to which a zero that was added would show
          step.end_micro_batch();
        }
      }
      step.reduce_micro_batches();
      step.finish();
      stepped = true;
      CHECK(step.contributing_ranks() == world.size() - 1);
      CHECK(step.contributing_micro_batches() == present);
      CHECK(std::signbit(step.sum()[1]));
      CHECK(std::bit_cast<std::uint32_t>(step.sum()[0]) == std::bit_cast<std::uint32_t>(*level.front()));
      return values;
    });
    CHECK(stepped == (world.size() > 1));
    CHECK(session.global_step() == (world.size() > 1 ? 1 : 0));
    CHECK(session.stop_reason() == "end of input on all ranks");
    CHECK(!session.stopped_early());
  });
}

TEST_CASE("a signal in the last step of a run does not make it unfinished") {
  with_each([](const Communicator& world, bool me, int) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.hooks = {std::make_shared<StopAtStepHook>(std::nullopt, 3)};
    MonitoredTrainingSession session(world, rank.state, options);
    while (!session.should_stop()) {
      if (me && session.global_step() == 2) rank.signals->raise(15);
      session.run(test::gradient_step);
    }
    session.close();
    CHECK(!session.stopped_early());
    CHECK(session.stop_reason() == "reached step 3");
    CHECK(session.stop_cause().by == "stop_at_step");
    if (world.is_chief()) CHECK(folder.status().state == "done");
  });
}

TEST_CASE("after a signal the end of hooks is left out once the chief's grace period is over") {
  with_each([](const Communicator& world, bool me, int) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.stop_grace_period_secs = 5;
    const auto slow = std::make_shared<Recorder>([&](std::string_view now, RunContext&) {
      if (now == "end") rank.clock->advance(Seconds{world.is_chief() ? 6.0 : 0.0});
    });
    const auto late = std::make_shared<Recorder>();
    options.hooks = {slow, late};
    MonitoredTrainingSession session(world, rank.state, options);
    if (me) rank.signals->raise(15);
    session.train(test::gradient_step);
    CHECK(slow->count("end") == 1);
    CHECK(late->count("end") == 0);
    if (world.is_chief()) CHECK(folder.saved() == Steps{0, 1});
  });
}

TEST_CASE("a build that differs on one rank is an error that names it") {
  class OtherBuild final : public ProcessIdentity {
   public:
    std::string host() const override { return system_.host(); }
    std::string boot_id() const override { return system_.boot_id(); }
    std::int64_t pid() const override { return system_.pid(); }
    std::optional<std::uint64_t> start_time(std::int64_t pid) const override {
      return system_.start_time(pid);
    }
    std::string job_id() const override { return system_.job_id(); }
    std::string program() const override { return "build id feed"; }
    std::uint64_t nonce() override { return system_.nonce(); }

   private:
    SystemIdentity system_;
  };
  with_each([](const Communicator& world, bool me, int who) {
    if (world.size() == 1) return;
    Rank rank(world);
    auto options = rank.options();
    if (me) options.config.process = std::make_shared<OtherBuild>();
    const auto error = thrown([&] { MonitoredTrainingSession(world, rank.state, options); });
    CHECK(contains(error, "EnvironmentError: ranks disagree on the program: rank 0 has '"));
    CHECK(contains(error, "'build id feed'"));
    if (who > 0) CHECK(contains(error, "rank " + std::to_string(who) + " has 'build id feed'"));
    CHECK(same_on_all(world, error));
  });
}

}  // namespace lockstep
