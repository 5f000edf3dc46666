#pragma once

#include <lockstep/hooks/early_stopping.hpp>
#include <lockstep/hooks/logging_tensor.hpp>
#include <lockstep/hooks/profiler.hpp>

#include "recovery_cases.hpp"

// Several things happen to a session in one step, on different ranks. For the same programs.

namespace lockstep {

/// Asks for a text of every rank after each step.
class Gatherer final : public SessionRunHook {
 public:
  std::string_view name() const override { return "gatherer"; }
  void after_run(RunContext& context, const RunValues&) override {
    context.gather("text", [this](const std::vector<std::string>& texts) {
      ++delivered;
      CHECK(texts.size() > 0);
    });
  }
  int delivered = 0;
};

/// What rank `other` or the chief's clock does to the step in which rank `who` ends.
enum class Beside { nothing, signal, time, wish, reached };

TEST_CASE("a rank ends after its step has reduced, while others hear of something else: one cause for all") {
  with_each([](const Communicator& world, bool me, int who) {
    for (const bool by_hook : {true, false}) {
      for (const Beside beside :
           {Beside::nothing, Beside::signal, Beside::time, Beside::wish, Beside::reached}) {
        for (const bool gathers_first : {true, false}) {
          CAPTURE(by_hook);
          CAPTURE(static_cast<int>(beside));
          CAPTURE(gathers_first);
          const SharedFolder folder(world);
          Rank rank(world);
          auto options = rank.options(folder.path);
          options.config.max_run_secs = 10;
          const auto gatherer = std::make_shared<Gatherer>();
          const auto ender = std::make_shared<Recorder>([&](std::string_view now, RunContext& context) {
            if (by_hook && me && now == "after_run" && context.global_step() == 2) throw EndOfInput("dry");
          });
          options.hooks = gathers_first ? std::vector<std::shared_ptr<SessionRunHook>>{gatherer, ender}
                                        : std::vector<std::shared_ptr<SessionRunHook>>{ender, gatherer};
          if (beside == Beside::reached) {
            options.hooks.push_back(std::make_shared<StopAtStepHook>(std::nullopt, 2));
          }
          MonitoredTrainingSession session(world, rank.state, options);
          const bool mine = world.rank() == (who + 1) % world.size();
          for (int i = 0; i < 5 && !session.should_stop(); ++i) {
            if (i == 1 && beside == Beside::signal && mine) rank.signals->raise(15);
            if (i == 1 && beside == Beside::wish && mine) session.request_stop("enough");
            if (i == 1 && beside == Beside::time) rank.clock->advance(Seconds{11});
            session.run_step_fn([&](StepFnContext& context) {
              context.run_with_hooks(test::gradient_step);
              if (!by_hook && me && i == 1) context.request_stop("dry");
            });
          }
          CHECK(thrown([&] { session.close(); }) == "");
          CHECK(session.global_step() == 2);
          CHECK(session.stop_reason() == "dry on rank " + std::to_string(who));
          CHECK(!session.stopped_early());
          CHECK(same_on_all(world, to_string(session.stop_cause())));
          CHECK(ender->count("end") == 1);
          const bool all_asked = gathers_first || !by_hook || world.size() == 1;
          if (world.is_chief()) {
            CHECK(gatherer->delivered >= 1);
            CHECK(rank.messages->contain("what hooks gathered in the last step is left out") == !all_asked);
            CHECK(folder.saved() == Steps{0, 2});
            CHECK(folder.status().state == "done");
          }
        }
      }
    }
  });
}

TEST_CASE("ranks that close hear of one that ended in the last step: one cause for all") {
  with_each([](const Communicator& world, bool me, int who) {
    Rank rank(world);
    auto options = rank.options();
    options.hooks = {std::make_shared<Recorder>([&](std::string_view now, RunContext&) {
      if (me && now == "after_run") throw EndOfInput("dry");
    })};
    MonitoredTrainingSession session(world, rank.state, options);
    session.run(test::gradient_step);
    session.close();
    CHECK(session.stop_reason() == "dry on rank " + std::to_string(who));
    CHECK(same_on_all(world, to_string(session.stop_cause())));
  });
}

// A thread of rank `who` is lost, and something else fails in the step in which all hear of it.
TEST_CASE("a lost thread is recovered from whatever else fails in that step, on whichever rank") {
  with_each([](const Communicator& world, bool me, int who) {
    const bool mine = world.rank() == (who + 1) % world.size();
    for (const Way way : {Way::run, Way::hooks, Way::raw}) {
      CAPTURE(static_cast<int>(way));
      Rank rank(world);
      auto options = rank.options();
      bool fails = mine;
      const auto recorder = std::make_shared<Recorder>([&](std::string_view now, RunContext& context) {
        if (now == "after_run" && context.global_step() == 2 && std::exchange(fails, false)) {
          throw DataError("nothing in the feed");
        }
      });
      options.hooks = {recorder};
      MonitoredTrainingSession session(world, rank.state, options);
      const auto error = thrown([&] {
        for (int i = 0; i < 4; ++i) {
          if (i == 1 && me) report<AbortedError>(session);
          go(session, way, test::plain_step);
        }
      });
      CHECK(error == "");
      CHECK(recorder->count("after_create_session") == 2);
      CHECK(recorder->count("on_error") == 0);
      session.close();
    }
  });
}

TEST_CASE("a step function with several hooked steps is called again when a thread is lost between them") {
  with_each([](const Communicator& world, bool me, int) {
    for (const bool fails : {false, true}) {
      CAPTURE(fails);
      Rank rank(world);
      auto options = rank.options();
      const auto recorder = std::make_shared<Recorder>();
      options.hooks = {recorder};
      MonitoredTrainingSession session(world, rank.state, options);
      int calls = 0;
      const auto error = thrown([&] {
        session.run_step_fn([&](StepFnContext& context) {
          ++calls;
          context.session().run(test::plain_step);
          context.run_with_hooks(test::gradient_step);
          if (calls == 1 && me) report<AbortedError>(session);
          context.session().run(test::plain_step);
          if (calls == 1 && me && fails) throw DataError("nothing in the feed");
          context.run_with_hooks(test::gradient_step);
          context.run_with_hooks(test::gradient_step);
        });
      });
      CHECK(error == "");
      CHECK(calls == 2);
      CHECK(session.global_step() == 3);
      CHECK(recorder->count("after_create_session") == 2);
      session.close();
    }
  });
}

TEST_CASE("what early stopping remembers is gone with the session that is lost, where nothing is saved") {
  with_each([](const Communicator& world, bool me, int) {
    Rank rank(world);
    auto options = rank.options();
    const auto stopping =
        std::make_shared<EarlyStoppingHook>(EarlyStoppingHook::Options{.metric = "loss", .patience = 3});
    options.hooks = {stopping};
    MonitoredTrainingSession session(world, rank.state, options);
    int tries = 0;
    for (int i = 0; i < 3; ++i) {
      session.run([&](StepContext& context) -> StepValues {
        if (++tries == 3 && me) throw AbortedError("gone");
        // The first time the loss is lower than it will ever be again.
        return {{"loss", tries + static_cast<double>(context.number())}};
      });
      if (i == 1) CHECK(stopping->best() == 1);
    }
    CHECK(session.global_step() == 1);
    CHECK(stopping->best() == 4);
    CHECK(stopping->best_step() == 1);
    session.close();
  });
}

TEST_CASE("a hook of the chief alone cannot say that all ranks stop") {
  with_each([](const Communicator& world, bool, int) {
    Rank rank(world);
    auto options = rank.options();
    options.chief_only_hooks = {std::make_shared<Recorder>([](std::string_view now, RunContext& context) {
      if (now == "after_run") context.request_stop_all("enough");
    })};
    MonitoredTrainingSession session(world, rank.state, options);
    const auto error = thrown([&] {
      for (int i = 0; i < 2; ++i) session.run(test::plain_step);  // the others hear of it in the second
    });
    CHECK(contains(error, "'recorder' is a hook of the chief alone"));
    CHECK(same_on_all(world, error));
  });
}

TEST_CASE("options of hooks that differ on one rank are named") {
  with_each([](const Communicator& world, bool me, int) {
    if (world.size() == 1) return;
    const auto differs = [&](auto make, std::string_view named) {
      Rank rank(world);
      auto options = rank.options();
      options.hooks = {make(me)};
      const auto error = thrown([&] { MonitoredTrainingSession(world, rank.state, options); });
      CHECK(contains(error, "EnvironmentError: ranks disagree on hooks: rank 0 has '"));
      CHECK(contains(error, named));
      CHECK(same_on_all(world, error));
    };
    differs(
        [](bool odd) {
          return std::make_shared<LoggingTensorHook>(
              LoggingTensorHook::Options{.values = {odd ? "accuracy" : "loss"}, .every_n_iter = 10});
        },
        "of accuracy");
    differs(
        [](bool odd) {
          return std::make_shared<ProfilerHook>(
              ProfilerHook::Options{.save_steps = 10, .output_dir = odd ? "here" : "there"});
        },
        "into here");
    differs(
        [](bool odd) {
          return std::make_shared<CheckpointSaverHook>(
              CheckpointSaverHook::Options{.save_steps = 10, .stop_on_failure = odd});
        },
        "stops when a save fails");
  });
}

TEST_CASE("no creator is an error of its own") {
  const auto error = thrown([] { MonitoredSession session(nullptr); });
  CHECK(error == "UsageError: the session creator is null; see make_session_creator");
}

}  // namespace lockstep
