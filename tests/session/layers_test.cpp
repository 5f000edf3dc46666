#include <thread>

#include <lockstep/base/executor.hpp>
#include <lockstep/session/looper_thread.hpp>

#include "mpi_ranks.hpp"
#include "session_support.hpp"

// The layers of a session, seen from outside: recoverable, coordinated, hooked, raw. Checks never leave
// early.

namespace lockstep {
namespace {

using test::contains;
using test::each_rank_in_turn;
using test::on_all_ranks;
using test::Rank;
using test::Recorder;
using test::same_on_all;
using test::SharedFolder;
using test::thrown;

/// A session with all layers, or with all but the outermost.
std::unique_ptr<MonitoredSession> make_session(Rank& rank, bool recovers,
                                               const MonitoredSessionOptions& hooks,
                                               MonitoredTrainingSessionOptions options) {
  auto creator = make_session_creator(rank.world, rank.state,
                                      {.checkpoint_dir = options.checkpoint_dir,
                                       .summary_dir = options.summary_dir,
                                       .scaffold = options.scaffold,
                                       .config = options.config});
  if (recovers) return std::make_unique<MonitoredSession>(std::move(creator), hooks);
  return std::make_unique<SingularMonitoredSession>(std::move(creator), hooks);
}

std::unique_ptr<MonitoredSession> make_session(Rank& rank, bool recovers,
                                               const MonitoredSessionOptions& hooks = {}) {
  return make_session(rank, recovers, hooks, rank.options());
}

/// Both kinds of session, each rank in turn the odd one.
void with_each_layering(
    const std::function<void(const Communicator& world, bool me, int who, bool recovers)>& check) {
  each_rank_in_turn([&](const Communicator& world, bool me, int who) {
    for (const bool recovers : {false, true}) {
      CAPTURE(recovers);
      check(world, me, who, recovers);
    }
  });
}

/// Real threads on a real clock.
MonitoredTrainingSessionOptions real_time(const Rank& rank) {
  auto options = rank.options();
  options.config.clock = std::make_shared<SystemClock>();
  options.config.executor = std::make_shared<ThreadExecutor>();
  return options;
}

/// Threads that run until their coordinator asks them to stop.
std::vector<std::unique_ptr<LooperThread>> busy_threads(const Coordinator& coordinator, Executor& executor) {
  std::vector<std::unique_ptr<LooperThread>> threads;
  for (int i = 0; i < 2; ++i) {
    threads.push_back(std::make_unique<LooperThread>(coordinator, executor, "busy", std::nullopt,
                                                     [] { std::this_thread::yield(); }));
  }
  return threads;
}

}  // namespace

// TF: WrappedSession.test_properties, CoordinatedSession.test_properties, RecoverableSession.test_properties
TEST_CASE("state, step, summaries and coordinator are the same through every layer") {
  on_all_ranks([](const Communicator& world) {
    for (const bool recovers : {false, true}) {
      const SharedFolder folder(world);
      Rank rank(world);
      auto options = rank.options();
      options.summary_dir = folder.path;
      RunContext* of_hooks = nullptr;
      const auto recorder = std::make_shared<Recorder>([&](std::string_view phase, RunContext& context) {
        of_hooks = &context;
        CHECK(&context.state() == &rank.state);
        CHECK(context.rank() == world.rank());
        CHECK(context.ranks() == world.size());
        if (phase == "after_run") {
          CHECK(context.global_step() == rank.state.global_step());
          context.summary().scalar("by_hook", 1, context.global_step());
        }
      });
      const auto session = make_session(rank, recovers, {.hooks = {recorder}}, options);
      CHECK(&session->summary() == &of_hooks->summary());
      CHECK(&session->topology() == &of_hooks->topology());
      CHECK(&session->coordinator() == &of_hooks->coordinator());
      session->run_step_fn([&](StepFnContext& context) {
        for (RawSession* raw : {&context.session()}) {
          CHECK(&raw->state() == &rank.state);
          CHECK(raw->rank() == world.rank());
          CHECK(raw->ranks() == world.size());
          CHECK(raw->global_step() == session->global_step());
        }
        context.run_with_hooks([&](StepContext& step) {
          CHECK(&step.state() == &rank.state);
          CHECK(step.number() == session->global_step());
          CHECK(step.rank() == world.rank());
          CHECK(step.ranks() == world.size());
          return test::gradient_step(step);
        });
      });
      CHECK(session->global_step() == 1);
      CHECK(rank.state.global_step() == 1);
      session->summary().scalar("by_program", 2, 1);
      session->close();
      if (world.is_chief()) {
        const auto events = test::events_in(folder.path);
        CHECK(test::steps_of(events, "by_hook") == test::Steps{1});
        CHECK(test::steps_of(events, "by_program") == test::Steps{1});
      }
    }
  });
}

// TF: WrappedSession.test_run, CoordinatedSession.test_run, RecoverableSession.test_run
TEST_CASE("a run goes through the layers to the step, once, and its values come back reduced") {
  on_all_ranks([](const Communicator& world) {
    for (const bool recovers : {false, true}) {
      Rank rank(world);
      const auto session = make_session(rank, recovers);
      int calls = 0;
      const auto step = [&](StepContext& context) -> StepValues {
        ++calls;
        return {{"ten", 10.0}, {"rank", static_cast<double>(context.rank())}};
      };
      for (const StepValues& values :
           {session->run(step),
            *session->run_step_fn([&](StepFnContext& c) { return c.run_with_hooks(step); }),
            *session->run_step_fn([&](StepFnContext& c) { return c.session().run(step); })}) {
        CHECK(values.all().size() == 2);
        CHECK(values.find("ten") == 10.0);
        CHECK(values.find("rank") == test::mean_rank(world));
      }
      CHECK(calls == 3);
      CHECK(session->global_step() == 2);
      session->close();
    }
  });
}

// TF: WrappedSession.test_should_stop_on_close, CoordinatedSession.test_should_stop_on_close
// TF: WrappedSession.test_close_twice
TEST_CASE("a closed session says stop, and may be closed again: hooks end once") {
  on_all_ranks([](const Communicator& world) {
    for (const bool recovers : {false, true}) {
      Rank rank(world);
      const auto recorder = std::make_shared<Recorder>();
      const auto session = make_session(rank, recovers, {.hooks = {recorder}});
      CHECK(!session->should_stop());
      session->run(test::gradient_step);
      CHECK(!session->should_stop());
      session->close();
      CHECK(session->should_stop());
      session->close();
      CHECK(session->should_stop());
      CHECK(recorder->count("end") == 1);
      CHECK(session->stop_reason() == "closed by the program");
    }
  });
}

// TF: WrappedSession.test_should_stop_uses_check_stop
// TF: WrappedSession.test_should_stop_delegates_to_wrapped_session
TEST_CASE("each layer's reason to stop is one of the session, whichever rank has it") {
  with_each_layering([](const Communicator& world, bool me, int who, bool recovers) {
    struct Reason {
      std::string_view layer;
      std::string_view by;
      std::int64_t after;  ///< how many steps
    };
    for (const Reason& reason : {Reason{"outermost", "the program", 3}, Reason{"coordinated", "a thread", 3},
                                 Reason{"hooked", "recorder", 3}, Reason{"raw", "the step", 2}}) {
      CAPTURE(reason.layer);
      Rank rank(world);
      const auto recorder = std::make_shared<Recorder>([&](std::string_view phase, RunContext& context) {
        const bool now = me && phase == "before_run" && context.global_step() == 2;
        if (now && reason.layer == "coordinated") context.coordinator().request_stop("enough");
        if (now && reason.layer == "hooked") context.request_stop("enough");
      });
      const auto session = make_session(rank, recovers, {.hooks = {recorder}});
      for (int i = 0; i < 10 && !session->should_stop(); ++i) {
        if (me && i == 2 && reason.layer == "outermost") session->request_stop("enough");
        session->run([&](StepContext& step) {
          if (me && i == 2 && reason.layer == "raw") throw EndOfInput("enough");
          return test::gradient_step(step);
        });
        CHECK(session->should_stop() == (i == 2));
      }
      CHECK(session->global_step() == reason.after);
      CHECK(session->stop_reason().starts_with("enough"));
      CHECK(session->stop_cause().by == reason.by);
      CHECK(session->stop_cause().rank == who);
      CHECK(session->stop_cause().step == reason.after);
      session->close();
    }
  });
}

// TF: CoordinatedSession.test_should_stop_on_coord_stop
TEST_CASE("a thread that asks its coordinator to stop stops all ranks after the next step") {
  with_each_layering([](const Communicator& world, bool me, int who, bool recovers) {
    Rank rank(world);
    const auto session = make_session(rank, recovers, {}, real_time(rank));
    session->run(test::gradient_step);
    Coordinator coordinator = session->coordinator();
    ThreadExecutor executor;
    std::unique_ptr<LooperThread> thread;
    if (me) {
      thread = std::make_unique<LooperThread>(coordinator, executor, "ends", std::nullopt,
                                              [&] { coordinator.request_stop("nothing more to read"); });
      coordinator.wait_for_stop();
    }
    // No rank stops alone.
    CHECK(!session->should_stop());
    session->run(test::gradient_step);
    CHECK(session->should_stop());
    CHECK(session->global_step() == 2);
    CHECK(session->stop_reason() ==
          "nothing more to read" + (who == 0 ? "" : " (asked by rank " + std::to_string(who) + ")"));
    session->close();
  });
}

// TF: CoordinatedSession.test_dont_request_stop_on_exception_in_main_thread
// TF: CoordinatedSession.test_stop_threads_on_close_after_exception
TEST_CASE("an error of a step is none of the coordinator's, and the threads of all ranks are joined") {
  with_each_layering([](const Communicator& world, bool me, int who, bool recovers) {
    Rank rank(world);
    const auto session = make_session(rank, recovers, {}, real_time(rank));
    ThreadExecutor executor;
    Coordinator coordinator = session->coordinator();
    const auto threads = busy_threads(coordinator, executor);
    bool asked_before = true;
    const auto error = thrown([&] {
      session->run([&](StepContext& step) {
        asked_before = coordinator.should_stop();
        if (me) throw DataError("boom");
        return test::gradient_step(step);
      });
    });
    const std::string by = who == 0 ? "" : "rank " + std::to_string(who) + ": ";
    CHECK(error == "DataError: " + by + "boom");
    CHECK(!asked_before);
    CHECK(coordinator.failure() == nullptr);
    // Nobody but the end of the session has asked the threads to stop.
    CHECK(coordinator.reason() == "the session is over");
    CHECK(coordinator.joined());
    for (const auto& thread : threads) CHECK(!thread->alive());
    CHECK(session->stop_cause().by == "the step");
    CHECK(session->should_stop());
    session->close();
  });
}

// TF: CoordinatedSession.test_stop_threads_on_close
TEST_CASE("the threads of all ranks are joined when the session closes") {
  on_all_ranks([](const Communicator& world) {
    for (const bool recovers : {false, true}) {
      Rank rank(world);
      const auto session = make_session(rank, recovers, {}, real_time(rank));
      ThreadExecutor executor;
      const auto threads = busy_threads(session->coordinator(), executor);
      session->run(test::gradient_step);
      for (const auto& thread : threads) CHECK(thread->alive());
      session->close();
      for (const auto& thread : threads) CHECK(!thread->alive());
    }
  });
}

// TF: HookedSession.testRunPassesAllArguments
TEST_CASE("the step gets its context and what the caller feeds, the caller the step's values") {
  on_all_ranks([](const Communicator& world) {
    Rank rank(world);
    const auto session = make_session(rank, true, {.hooks = {std::make_shared<Recorder>()}});
    const std::vector<double> fed{world.rank() + 0.5};
    Feeds feeds;
    feeds.add("x", std::span(fed));
    for (int i = 0; i < 2; ++i) {
      const auto values = session->run(
          [&](StepContext& step) -> StepValues {
            CHECK(step.number() == i);
            CHECK(&step.state() == &rank.state);
            CHECK(step.feeds().size() == 1);
            return {{"x", step.feeds().get<double>("x")[0]}};
          },
          feeds);
      CHECK(values.find("x") == test::mean_rank(world) + 0.5);
    }
    session->close();
  });
}

// TF: HookedSession.testCallsHooksBeginEnd
TEST_CASE("every hook is called before and after each run, once, in the order of the list") {
  on_all_ranks([](const Communicator& world) {
    Rank rank(world);
    std::vector<std::string> calls;
    const auto hook = [&](const std::string& who) {
      return std::make_shared<Recorder>(
          [&calls, who](std::string_view phase, RunContext&) { calls.push_back(who + std::string(phase)); });
    };
    const std::vector<std::string> created{"1 begin", "2 begin", "1 after_create_session",
                                           "2 after_create_session"};
    const std::vector<std::string> ran{"1 before_run", "2 before_run", "step", "1 after_run", "2 after_run"};
    const auto session = make_session(rank, true, {.hooks = {hook("1 "), hook("2 ")}});
    CHECK(calls == created);
    for (int i = 0; i < 2; ++i) {
      calls.clear();
      session->run([&](StepContext& step) {
        calls.emplace_back("step");
        return test::gradient_step(step);
      });
      CHECK(calls == ran);
    }
    calls.clear();
    session->close();
    CHECK(calls == std::vector<std::string>{"1 end", "2 end"});
  });
}

// TF: HookedSession.testShouldStop
TEST_CASE("a hook that asks to stop stops, and the hooks behind it still hear of that run") {
  with_each_layering([](const Communicator& world, bool me, int, bool recovers) {
    for (const bool together : {false, true}) {
      CAPTURE(together);
      Rank rank(world);
      const auto asks = std::make_shared<Recorder>([&](std::string_view phase, RunContext& context) {
        if (together && phase == "after_run") context.request_stop_all("enough");
        if (!together && me && phase == "before_run") context.request_stop("enough");
        if (phase == "after_run") CHECK(context.stop_requested());
      });
      const auto behind = std::make_shared<Recorder>();
      const auto session = make_session(rank, recovers, {.hooks = {asks, behind}});
      CHECK(!session->should_stop());
      session->run(test::gradient_step);
      CHECK(session->should_stop());
      CHECK(behind->count("after_run") == 1);
      CHECK(contains(thrown([&] { session->run(test::gradient_step); }), "although should_stop() is true"));
      session->close();
      CHECK(behind->count("end") == 1);
    }
  });
}

// TF: HookedSession.testFetchesHookRequests
TEST_CASE("each hook finds the values that it looks for among those of the step, as the caller does") {
  class Looks final : public SessionRunHook {
   public:
    explicit Looks(std::string_view value) : value_(value) {}
    std::string_view name() const override { return "looks"; }
    std::string describe() const override { return "looks for " + std::string(value_); }
    void after_run(RunContext&, const RunValues& values) override {
      found = values.values().find(value_);
      step = values.global_step();
    }
    std::optional<double> found;
    std::int64_t step = 0;

   private:
    std::string_view value_;
  };
  on_all_ranks([](const Communicator& world) {
    Rank rank(world);
    const auto a = std::make_shared<Looks>("a");
    const auto b = std::make_shared<Looks>("b");
    const auto c = std::make_shared<Looks>("c");
    const auto session = make_session(rank, true, {.hooks = {a, b, c}});
    const auto values = session->run([](StepContext& step) -> StepValues {
      return {{"a", 1.0 + step.rank()}, {"b", 2.0 * step.rank()}};
    });
    CHECK(a->found == 1.0 + test::mean_rank(world));
    CHECK(b->found == 2.0 * test::mean_rank(world));
    CHECK(!c->found);
    CHECK(values.find("a") == a->found);
    CHECK(values.find("b") == b->found);
    CHECK(a->step == 1);
    session->close();
  });
}

}  // namespace lockstep
