#pragma once

#include <lockstep/hooks/early_stopping.hpp>
#include <lockstep/hooks/global_step_waiter.hpp>
#include <lockstep/hooks/logging_tensor.hpp>
#include <lockstep/hooks/nan_tensor.hpp>
#include <lockstep/hooks/profiler.hpp>

#include "recovery_cases.hpp"

// What programs and hooks do that is seldom done. For the same programs.

namespace lockstep {

TEST_CASE("a rank that catches its own exception inside the session's block leaves as the others do") {
  struct Mine : std::runtime_error {
    using std::runtime_error::runtime_error;
  };
  with_each([](const Communicator& world, bool me, int) {
    for (const bool shared : {false, true}) {
      Rank rank(world);
      auto options = rank.options();
      options.config.share_parameters = shared;
      bool caught = false;
      const auto error = thrown([&] {
        MonitoredTrainingSession session(world, rank.state, options);
        try {
          session.run([&](StepContext& step) -> StepValues {
            if (me) throw Mine("mine");
            return test::plain_step(step);
          });
        } catch (const Mine&) {
          caught = true;
        }
        CHECK(session.should_stop());
      });
      CHECK(caught == me);
      CHECK((error == "") == me);
    }
  });
}

/// Gathers when its timer says so.
class Timed final : public SessionRunHook {
 public:
  explicit Timed(SecondOrStepTimer timer) : timer_(std::move(timer)) {}
  std::string_view name() const override { return "timed"; }
  void begin(RunContext& context) override { context.agree_on(timer_); }
  void after_run(RunContext& context, const RunValues& values) override {
    if (!timer_.should_trigger_for_step(values.global_step())) return;
    timer_.update_last_triggered_step(values.global_step());
    context.gather("text", [this](const std::vector<std::string>&) { ++delivered; });
  }
  int delivered = 0;

 private:
  SecondOrStepTimer timer_;
};

TEST_CASE("timers, profiles and gathers of all ranks agree after a recovery, too") {
  with_each([](const Communicator& world, bool me, int) {
    for (const std::string_view phase : {"before_run", "late step", "after_run"}) {
      for (std::int64_t at = 1; at < 5; ++at) {
        CAPTURE(phase);
        CAPTURE(at);
        const SharedFolder folder(world);
        Rank rank(world);
        auto options = rank.options();
        bool aborts = me;
        const auto abort_once = [&](std::string_view now, std::int64_t step) {
          if (now == phase && step == at && std::exchange(aborts, false)) throw AbortedError("gone");
        };
        const auto recorder = std::make_shared<Recorder>([&](std::string_view now, RunContext& context) {
          abort_once(now, context.global_step() - (now == "after_run" ? 1 : 0));
        });
        const auto by_steps = std::make_shared<Timed>(SecondOrStepTimer(std::nullopt, 2));
        const auto by_seconds = std::make_shared<Timed>(SecondOrStepTimer(2.5, std::nullopt));
        options.hooks = {
            recorder,
            std::make_shared<ProfilerHook>(ProfilerHook::Options{.save_steps = 2, .output_dir = folder.path}),
            by_steps, by_seconds, std::make_shared<StopAtStepHook>(std::nullopt, 9)};
        MonitoredTrainingSession session(world, rank.state, options);
        const auto error = thrown([&] {
          session.train([&](StepContext& step) {
            rank.clock->advance(Seconds{1.0 + world.rank()});
            const auto values = test::gradient_step(step);
            abort_once("late step", step.number());
            return values;
          });
        });
        CHECK(error == "");
        CHECK(session.global_step() == 9);
        if (world.is_chief()) {
          CHECK(by_steps->delivered >= 4);
          CHECK(by_seconds->delivered >= 3);
          CHECK(std::filesystem::exists(folder.path / "timeline-8.json"));
        }
      }
    }
  });
}

TEST_CASE("hooks that act for all ranks are refused at the start where the chief alone has them") {
  with_each([](const Communicator& world, bool, int) {
    const std::vector<std::shared_ptr<SessionRunHook>> hooks = {
        std::make_shared<StopAtStepHook>(std::nullopt, 2),
        std::make_shared<ProfilerHook>(ProfilerHook::Options{.save_steps = 2}),
        std::make_shared<EarlyStoppingHook>(EarlyStoppingHook::Options{.patience = 2})};
    for (const auto& hook : hooks) {
      Rank rank(world);
      auto options = rank.options();
      options.chief_only_hooks = {hook};
      const auto error = thrown([&] { MonitoredTrainingSession(world, rank.state, options); });
      CHECK(contains(error, "UsageError: '" + std::string(hook->name())));
      CHECK(contains(error, "give it in `hooks` on every rank"));
      CHECK(same_on_all(world, error));
    }
    Rank rank(world);
    auto options = rank.options();
    options.chief_only_hooks = {std::make_shared<Timed>(SecondOrStepTimer(std::nullopt, 1))};
    const auto error = thrown([&] {
      MonitoredTrainingSession session(world, rank.state, options);
      for (int i = 0; i < 2; ++i) session.run(test::plain_step);
    });
    CHECK(contains(error, "'timed' is a hook of the chief alone and gathers"));
  });
}

TEST_CASE("a step function that swallows the failure of a step does not run another") {
  with_each([](const Communicator& world, bool me, int) {
    for (const bool raw : {false, true}) {
      CAPTURE(raw);
      Rank rank(world);
      MonitoredTrainingSession session(world, rank.state, rank.options());
      const auto error = thrown([&] {
        session.run_step_fn([&](StepFnContext& context) {
          const auto step = [&](StepContext& its) {
            if (me) throw std::runtime_error("mine");
            return test::gradient_step(its);
          };
          for (int i = 0; i < 3; ++i) {
            CHECK(thrown([&] {
                    if (raw) context.session().run(step);
                    if (!raw) context.run_with_hooks(step);
                  }) != "");
          }
        });
      });
      CHECK(contains(error, "mine"));
      CHECK(session.global_step() == 0);
    }
  });
}

TEST_CASE("a step function with several hooked steps leaves at the stop, and at the end of the input") {
  with_each([](const Communicator& world, bool me, int who) {
    for (const bool reached : {false, true}) {
      CAPTURE(reached);
      Rank rank(world);
      auto options = rank.options();
      const auto recorder = std::make_shared<Recorder>([&](std::string_view now, RunContext& context) {
        if (!reached && me && now == "after_run" && context.global_step() == 3) throw EndOfInput("dry");
      });
      options.hooks = {recorder, std::make_shared<StopAtStepHook>(std::nullopt, reached ? 3 : 100)};
      MonitoredTrainingSession session(world, rank.state, options);
      const auto error = thrown([&] {
        while (!session.should_stop()) {
          session.run_step_fn([&](StepFnContext& context) {
            context.session().run(test::plain_step);
            context.run_with_hooks(test::gradient_step);
            context.run_with_hooks(test::gradient_step);
            context.session().run(test::plain_step);
          });
        }
        session.close();
      });
      CHECK(error == "");
      CHECK(session.global_step() == 3);
      CHECK(session.stop_reason() == (reached ? "reached step 3" : "dry on rank " + std::to_string(who)));
      CHECK(session.stop_cause().by == (reached ? "stop_at_step" : "after_run of 'recorder'"));
      CHECK(recorder->count("end") == 1);
    }
  });
}

TEST_CASE("a failure of the raw session ends the session, also outside a step function") {
  with_each([](const Communicator& world, bool me, int) {
    for (const bool closes : {false, true}) {
      CAPTURE(closes);
      Rank rank(world);
      const auto options = rank.options();
      const auto recorder = std::make_shared<Recorder>();
      SingularMonitoredSession session(
          make_session_creator(world, rank.state, {.scaffold = options.scaffold, .config = options.config}),
          {.hooks = {recorder}});
      session.run(test::gradient_step);
      const auto step = [&](StepContext& its) {
        if (me) throw DataError("boom");
        return test::plain_step(its);
      };
      CHECK(contains(thrown([&] { session.raw_session()->run(step); }), "boom"));
      const auto error = thrown([&] {
        if (closes) session.close();
        if (!closes) session.run(test::gradient_step);
      });
      CHECK(contains(error, "boom"));
      CHECK(session.should_stop());
      CHECK(recorder->count("end") == 0);
      CHECK(recorder->count("on_error") == 1);
    }
  });
}

TEST_CASE("who asked to stop is told, though the program closes before another step") {
  with_each([](const Communicator& world, bool me, int who) {
    Rank rank(world);
    MonitoredTrainingSession session(world, rank.state, rank.options());
    session.run(test::plain_step);
    if (me) session.request_stop("converged");
    session.close();
    const std::string by = who == 0 ? "" : " (asked by rank " + std::to_string(who) + ")";
    CHECK(session.stop_reason() == "converged" + by);
    CHECK(same_on_all(world, to_string(session.stop_cause())));
  });
}

TEST_CASE("a thread that asks to stop without a reason stops the session") {
  with_each([](const Communicator& world, bool me, int) {
    Rank rank(world);
    MonitoredTrainingSession session(world, rank.state, rank.options());
    if (me) session.coordinator().request_stop("");
    session.run(test::plain_step);
    CHECK(session.should_stop());
    CHECK(session.stop_reason().starts_with("no reason given"));
    session.close();
  });
}

TEST_CASE("what a hook gathers in `end` arrives") {
  class Last final : public SessionRunHook {
   public:
    std::string_view name() const override { return "last"; }
    void end(RunContext& context) override {
      context.gather(std::to_string(context.rank()), [this](const auto& texts) { got = texts; });
    }
    std::vector<std::string> got;
  };
  with_each([](const Communicator& world, bool, int) {
    Rank rank(world);
    auto options = rank.options();
    const auto last = std::make_shared<Last>();
    options.hooks = {last};
    MonitoredTrainingSession session(world, rank.state, options);
    session.run(test::plain_step);
    session.close();
    CHECK(last->got.size() == (world.is_chief() ? static_cast<std::size_t>(world.size()) : 0));
  });
}

TEST_CASE("listeners hear of each save, also across a recovery; what is said of the first stops nothing") {
  class Listener final : public CheckpointSaverListener {
   public:
    void before_save(std::int64_t step) override { before.push_back(step); }
    bool after_save(std::int64_t step) override {
      after.push_back(step);
      return step == 0;
    }
    Steps before;
    Steps after;
  };
  with_each([](const Communicator& world, bool me, int) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.save_checkpoint_secs = 0;
    const auto listener = std::make_shared<Listener>();
    bool aborts = me;
    options.hooks = {
        std::make_shared<Recorder>([&](std::string_view now, RunContext& context) {
          if (now == "before_run" && context.global_step() == 2 && std::exchange(aborts, false)) {
            throw AbortedError("gone");
          }
        }),
        std::make_shared<CheckpointSaverHook>(
            CheckpointSaverHook::Options{.save_steps = 2, .listeners = {listener}})};
    MonitoredTrainingSession session(world, rank.state, options);
    for (int i = 0; i < 4; ++i) session.run(test::gradient_step);
    session.close();
    CHECK(session.stop_reason() == "closed by the program");
    CHECK(listener->before == (world.is_chief() ? Steps{0, 2, 4} : Steps{}));
    CHECK(listener->after == listener->before);
  });
}

TEST_CASE("save_now without a saver says that it saves nothing") {
  with_each([](const Communicator& world, bool me, int) {
    Rank rank(world);
    MonitoredTrainingSession session(world, rank.state, rank.options());
    for (int i = 0; i < 2; ++i) {
      if (me) session.save_now();
      session.run(test::plain_step);
    }
    session.close();
    const auto said = std::ranges::count_if(
        rank.messages->lines, [](const std::string& line) { return contains(line, "saves nothing"); });
    CHECK(said == (world.is_chief() ? 1 : 0));
  });
}

TEST_CASE("NanTensorHook looks at its value alone, which must be there; steps are logged with all digits") {
  with_each([](const Communicator& world, bool, int) {
    Rank rank(world);
    auto options = rank.options();
    options.scaffold.init_fn = [](State& state) { state.set_global_step(1234566); };
    options.hooks = {std::make_shared<NanTensorHook>("loss"),
                     std::make_shared<LoggingTensorHook>(
                         LoggingTensorHook::Options{.values = {"step", "loss"}, .every_n_iter = 1})};
    MonitoredTrainingSession session(world, rank.state, options);
    const auto perplexity = [](StepContext&) -> StepValues {
      return {{"loss", 0.25}, {"perplexity", std::numeric_limits<double>::infinity()}};
    };
    CHECK(thrown([&] { session.run(perplexity); }) == "");
    if (world.is_chief()) CHECK(rank.messages->contain("step = 1234567, loss = 0.25"));
    const auto error = thrown([&] {
      for (int i = 0; i < 2; ++i) session.run([](StepContext&) -> StepValues { return {{"los", 0.25}}; });
    });
    CHECK(contains(error, "UsageError: "));
    CHECK(contains(error, "no value 'loss' to watch"));
  });
}

TEST_CASE("a wait for another job's step ends at its limit, not at the next look") {
  const auto clock = std::make_shared<FakeClock>();
  PosixFileSystem files;
  const auto error = thrown([&] {
    wait_for_global_step(Communicator::self({.clock = clock, .log = Log()}), files, "/nowhere",
                         {.wait_until_step = 5, .limit_secs = 1.25, .poll_secs = 60});
  });
  CHECK(error.starts_with("DeadlineExceeded: "));
  CHECK(clock->now().count() == doctest::Approx(1.25));
}

}  // namespace lockstep
