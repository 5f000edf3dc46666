#include <set>

#include <nlohmann/json.hpp>

#include <lockstep/hooks/checkpoint_saver.hpp>
#include <lockstep/hooks/early_stopping.hpp>
#include <lockstep/hooks/feed_fn.hpp>
#include <lockstep/hooks/final_ops.hpp>
#include <lockstep/hooks/logging_tensor.hpp>
#include <lockstep/hooks/profiler.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/mpi/simulated_world.hpp>

#include "session_support.hpp"

// The built-in hooks in sessions of 1 to 4 simulated ranks. Checks never leave early.

namespace lockstep {
namespace {

using test::Rank;
using test::SharedFolder;
using test::Steps;

/// A claim on 1 to 4 simulated ranks, another interleaving each; a wait without an end throws.
void everywhere(const std::function<void(const Communicator&)>& check) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    CAPTURE(ranks);
    SimulatedWorld{ranks, 0, static_cast<std::uint64_t>(ranks)}.run(check);
  }
}

/// Counts what it hears.
class Listener final : public CheckpointSaverListener {
 public:
  void begin() override { ++begun; }
  void before_save(std::int64_t step) override { before.push_back(step); }
  bool after_save(std::int64_t step) override {
    after.push_back(step);
    return step == stop_after;
  }
  void end(std::int64_t step) override { ended.push_back(step); }

  int begun = 0;
  Steps before;
  Steps after;
  Steps ended;
  std::int64_t stop_after = -1;
};

}  // namespace

// TF: CheckpointSaverHook.test_listener_with_monitored_session
// TF: CheckpointSaverHook.test_listener_with_default_saver
// TF: CheckpointSaverHook.test_two_listeners_with_default_saver
// TF: CheckpointSaverHook.test_saves_when_saver_and_scaffold_both_missing
TEST_CASE("listeners of a session that saves each step hear of 0, 1 and 2, on the chief alone") {
  everywhere([](const Communicator& world) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.save_checkpoint_secs = 0;
    const auto one = std::make_shared<Listener>();
    const auto two = std::make_shared<Listener>();
    // The hook brings no saver: that is the session's.
    options.hooks = {std::make_shared<CheckpointSaverHook>(
        CheckpointSaverHook::Options{.save_steps = 1, .listeners = {one, two}})};
    MonitoredTrainingSession session(world, rank.state, options);
    for (int i = 0; i < 2; ++i) session.run(test::gradient_step);
    session.close();
    const Steps heard = world.is_chief() ? Steps{0, 1, 2} : Steps{};
    for (const auto& listener : {one, two}) {
      CHECK(listener->begun == (world.is_chief() ? 1 : 0));
      CHECK(listener->before == heard);
      CHECK(listener->after == heard);
      CHECK(listener->ended == (world.is_chief() ? Steps{2} : Steps{}));
    }
    if (world.is_chief()) CHECK(folder.saved() == heard);
  });
}

// TF: CheckpointSaverHook.test_raise_when_saver_and_scaffold_both_present
TEST_CASE("a directory has one saver: a second one is an error on all ranks that names both") {
  everywhere([](const Communicator& world) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.hooks = {std::make_shared<CheckpointSaverHook>(CheckpointSaverHook::Options{.save_steps = 7})};
    const auto error = test::thrown([&] { MonitoredTrainingSession(world, rank.state, options); });
    CHECK(test::contains(error, "'checkpoint_saver every 600 s' and 'checkpoint_saver every 7 steps'"));
    CHECK(test::same_on_all(world, error));
  });
}

// TF: CheckpointSaverHook.test_listener_stops_training_in_after_save
// A save is durable some time after its step; its listener asks then, and all stop after the step that runs.
TEST_CASE("a listener on the chief stops all ranks after the step in which it heard of its save") {
  everywhere([](const Communicator& world) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.save_checkpoint_secs = 0;
    const auto listener = std::make_shared<Listener>();
    listener->stop_after = 2;
    options.hooks = {std::make_shared<CheckpointSaverHook>(
        CheckpointSaverHook::Options{.save_steps = 2, .listeners = {listener}})};
    MonitoredTrainingSession session(world, rank.state, options);
    for (int i = 0; i < 10 && !session.should_stop(); ++i) session.run(test::gradient_step);
    CHECK(session.global_step() == 3);
    CHECK(session.stop_reason() == "a checkpoint listener asked for it after saving step 2");
    session.close();
    if (world.is_chief()) CHECK(folder.saved() == Steps{0, 2, 3});
  });
}

TEST_CASE("a log line every n runs and at the end, with the values over all ranks, by the chief alone") {
  everywhere([](const Communicator& world) {
    Rank rank(world);
    auto options = rank.options();
    options.hooks = {std::make_shared<LoggingTensorHook>(
        LoggingTensorHook::Options{.values = {"step", "loss"}, .every_n_iter = 3, .at_end = true})};
    MonitoredTrainingSession session(world, rank.state, options);
    for (int i = 0; i < 5; ++i) {
      rank.clock->advance(Seconds{world.is_chief() ? 1.0 : 77.0});
      session.run([](StepContext& step) -> StepValues {
        return {{"loss", static_cast<double>(10 * step.number() + 2 * step.rank() - step.ranks())}};
      });
    }
    session.close();
    const std::vector<std::string> expected{"step = 1, loss = -1", "step = 4, loss = 29 (3.000 sec)",
                                            "step = 5, loss = 39"};
    std::vector<std::string> found;
    for (const std::string& line : rank.messages->lines) {
      if (line.starts_with("step = ")) found.push_back(line);
    }
    CHECK(found == (world.is_chief() ? expected : std::vector<std::string>{}));
  });
}

TEST_CASE("profiles: steps that all ranks agree on, a track for each, and every phase where it happened") {
  everywhere([](const Communicator& world) {
    for (const bool reduces : {false, true}) {
      const SharedFolder folder(world);
      Rank rank(world);
      auto options = rank.options(folder.path);
      options.save_checkpoint_steps = 1;
      options.hooks = {
          std::make_shared<ProfilerHook>(ProfilerHook::Options{.save_secs = 2.5, .output_dir = folder.path}),
          std::make_shared<StopAtStepHook>(std::nullopt, 9)};
      MonitoredTrainingSession session(world, rank.state, options);
      session.train([&](StepContext& step) {
        const auto phase = step.trace().phase("work");
        // Only the chief's clock decides.
        rank.clock->advance(Seconds{world.is_chief() ? 1.0 : 50.0 * world.rank()});
        return reduces ? test::gradient_step(step) : test::plain_step(step);
      });
      if (!world.is_chief()) continue;
      std::set<std::string> timelines;
      for (const auto& entry : PosixFileSystem().open_directory(folder.path)->list()) {
        if (entry.name.starts_with("timeline-")) timelines.insert(entry.name);
      }
      // Begun in step 1; due in the ballots of steps 4 and 8 (the chief's 3 s), so 5 and 9 are looked at.
      // What the last step gave is written in the close.
      CHECK(timelines == std::set<std::string>{"timeline-5.json", "timeline-9.json"});
      for (const std::string& name : timelines) {
        PosixFileSystem files;
        const auto bytes = read_all(*files.open_file(folder.path / name), 1 << 20);
        const auto* text = reinterpret_cast<const char*>(bytes.data());
        const auto timeline = nlohmann::json::parse(text, text + bytes.size());
        std::vector<std::multiset<std::string>> phases(static_cast<std::size_t>(world.size()));
        int tracks = 0;
        for (const auto& event : timeline.at("traceEvents")) {
          const auto track = event.at("tid").get<std::size_t>() - 1;
          if (event.at("ph") == "X") phases.at(track).insert(event.at("name").get<std::string>());
          if (event.at("name") == "thread_name") ++tracks;
          if (event.at("name") == "work") {
            CHECK(event.at("dur").get<double>() ==
                  doctest::Approx(track == 0 ? 1e6 : 50e6 * static_cast<double>(track)));
          }
        }
        CHECK(tracks == world.size());
        for (std::size_t r = 0; r < phases.size(); ++r) {
          for (const char* phase :
               {"step", "work", "reduce", "stop_at_step", "checkpoint_saver", "summary_saver"}) {
            CAPTURE(phase);
            CHECK(phases[r].count(phase) >= 1);
          }
          CHECK(phases[r].count("save") == (r == 0 ? 1 : 0));
        }
      }
    }
  });
}

// TF: FeedFnHook.test_feeding_placeholder
TEST_CASE("what a function feeds reaches the step of its own rank") {
  everywhere([](const Communicator& world) {
    Rank rank(world);
    auto options = rank.options();
    double value = 0;
    options.hooks = {std::make_shared<FeedFnHook>([&](RunContext& context, Feeds& feeds) {
      value = static_cast<double>(10 * context.global_step() + context.rank());
      feeds.add("x", std::span<const double>(&value, 1));
    })};
    MonitoredTrainingSession session(world, rank.state, options);
    for (int i = 0; i < 3; ++i) {
      double found = -1;
      session.run([&](StepContext& step) {
        found = step.feeds().get<double>("x")[0];
        return test::gradient_step(step);
      });
      CHECK(found == 10 * i + world.rank());
    }
    session.close();
  });
}

// TF: HookedSession.testOnlyHooksHaveFeeds, HookedSession.testBothHooksAndUserHaveFeeds
TEST_CASE("the step finds what hooks and caller feed, and the caller's own feeds stay as they were") {
  everywhere([](const Communicator& world) {
    Rank rank(world);
    auto options = rank.options();
    const std::vector<float> by_hook{1, 2};
    const std::vector<float> by_caller{3};
    options.hooks = {std::make_shared<FeedFnHook>(
        [&](RunContext&, Feeds& feeds) { feeds.add("hook", std::span(by_hook)); })};
    MonitoredTrainingSession session(world, rank.state, options);
    Feeds mine;
    for (const bool both : {false, true, true}) {
      if (both && mine.size() == 0) mine.add("caller", std::span(by_caller));
      session.run(
          [&](StepContext& step) {
            CHECK(step.feeds().size() == (both ? 2 : 1));
            CHECK(step.feeds().get<float>("hook")[1] == 2);
            if (both) CHECK(step.feeds().get<float>("caller")[0] == 3);
            return test::plain_step(step);
          },
          mine);
      CHECK(mine.size() == (both ? 1 : 0));
    }
    session.close();
  });
}

// TF: HookedSession.testHooksFeedConflicts, HookedSession.testHooksAndUserFeedConflicts
TEST_CASE("one name fed twice on one rank, by hooks or by hook and caller, is an error on all") {
  everywhere([](const Communicator& world) {
    for (int who = 0; who < world.size(); ++who) {
      for (const bool by_caller : {false, true}) {
        CAPTURE(who);
        Rank rank(world);
        auto options = rank.options();
        const std::vector<float> value{1};
        const auto feeding = [&](bool conflict) {
          return std::make_shared<FeedFnHook>([&, conflict](RunContext& context, Feeds& feeds) {
            const bool now = context.rank() == who && context.global_step() == 1;
            if (!conflict || now) feeds.add("x", std::span(value));
          });
        };
        options.hooks = {feeding(by_caller), feeding(!by_caller)};
        if (by_caller) options.hooks.pop_back();
        MonitoredTrainingSession session(world, rank.state, options);
        Feeds mine;
        if (by_caller) mine.add("x", std::span(value));
        const auto error = test::thrown([&] {
          for (int i = 0; i < 3; ++i) session.run(test::gradient_step, mine);
        });
        CHECK(test::contains(error, "UsageError: "));
        CHECK(test::contains(error, "'x' is fed twice in one step"));
        CHECK(test::same_on_all(world, error));
        CHECK(session.global_step() == 1);
      }
    }
  });
}

// TF: FinalOpsHook.test_final_ops_is_scalar_tensor, FinalOpsHook.test_final_ops_is_tensor
// TF: FinalOpsHook.test_final_ops_with_dictionary
TEST_CASE("final ops give a number, a tensor or several by name, from the state at the end") {
  everywhere([](const Communicator& world) {
    Rank rank(world);
    auto options = rank.options();
    const auto ops = std::make_shared<FinalOpsHook>([](RunContext& context) {
      const auto weights = context.state().parameters().first(5);
      return FinalOpsHook::Values{{"step", {static_cast<double>(context.global_step())}},
                                  {"weights", {weights.begin(), weights.end()}}};
    });
    options.hooks = {ops};
    MonitoredTrainingSession session(world, rank.state, options);
    for (int i = 0; i < 3; ++i) session.run(test::gradient_step);
    CHECK(!ops->final_ops_values());
    session.close();
    CHECK(ops->final_ops_values()->at("step") == std::vector<double>{3});
    CHECK(ops->final_ops_values()->at("weights") == std::vector<double>(5, 0.25));
  });
}

// TF: FinalOpsHook.test_final_ops_triggers_out_of_range_error
TEST_CASE("a final op that reads input at its end fails on all ranks, whichever it is, and is explained") {
  everywhere([](const Communicator& world) {
    for (int who = 0; who < world.size(); ++who) {
      const SharedFolder folder(world);
      Rank rank(world);
      auto options = rank.options(folder.path);
      options.hooks = {std::make_shared<FinalOpsHook>([&](RunContext& context) {
        if (context.rank() == who) throw EndOfInput();
        return FinalOpsHook::Values{};
      })};
      MonitoredTrainingSession session(world, rank.state, options);
      for (int i = 0; i < 2; ++i) session.run(test::gradient_step);
      const auto error = test::thrown([&] { session.close(); });
      CHECK(test::contains(error, "end of input"));
      if (world.is_chief()) {
        CHECK(rank.messages->contain("a final op reads the input of the run") == (who == 0));
        CHECK(folder.saved() == Steps{0, 2});
      }
    }
  });
}

TEST_CASE("texts that hooks gather reach the chief after the next agreement, and none after an error") {
  class Gathers final : public SessionRunHook {
   public:
    std::string_view name() const override { return "gathers"; }
    void after_run(RunContext& context, const RunValues& values) override {
      if (values.global_step() % 2 != 0) return;
      context.gather(std::to_string(10 * values.global_step() + context.rank()),
                     [this](const std::vector<std::string>& texts) {
                       std::string line;
                       for (const std::string& text : texts) line += text + " ";
                       lines.push_back(line);
                       if (fails) throw IoError("no room");
                     });
    }
    std::vector<std::string> lines;
    bool fails = false;
  };
  everywhere([](const Communicator& world) {
    const auto expected = [&](std::int64_t step) {
      std::string line;
      for (int r = 0; r < world.size(); ++r) line += std::to_string(10 * step + r) + " ";
      return line;
    };
    for (const bool reduces : {false, true}) {
      const auto step = reduces ? test::gradient_step : test::plain_step;
      const auto hook = std::make_shared<Gathers>();
      {
        Rank rank(world);
        auto options = rank.options();
        options.hooks = {hook};
        MonitoredTrainingSession session(world, rank.state, options);
        for (int i = 0; i < 2; ++i) session.run(step);
        CHECK(hook->lines.empty());
        session.run(step);
        CHECK(hook->lines.size() == (world.is_chief() ? 1 : 0));
        session.run(step);
        session.close();
        if (world.is_chief()) CHECK(hook->lines == std::vector<std::string>{expected(2), expected(4)});
      }
      // A rank that fails after its ballot, or a chief that cannot use what it got.
      for (int who = 0; who < world.size(); ++who) {
        for (const std::string_view phase : {"step", "late", "after_run", "deliver"}) {
          CAPTURE(who);
          CAPTURE(phase);
          const auto again = std::make_shared<Gathers>();
          again->fails = phase == "deliver";
          Rank rank(world);
          auto options = rank.options();
          options.hooks = {
              again, std::make_shared<test::Recorder>([&](std::string_view now, RunContext& context) {
                if (now == "after_run" && phase == now && world.rank() == who && context.global_step() == 2) {
                  throw DataError("boom");
                }
              })};
          MonitoredTrainingSession session(world, rank.state, options);
          const auto error = test::thrown([&] {
            for (int i = 0; i < 5; ++i) {
              session.run([&](StepContext& context) {
                const bool now = world.rank() == who && context.number() == 2;
                if (now && phase == "step") throw DataError("boom");
                const auto values = step(context);
                if (now && phase == "late") throw DataError("boom");
                return values;
              });
            }
          });
          CHECK(test::contains(error, phase == "deliver" ? "no room" : "boom"));
          CHECK(test::same_on_all(world, error));
          const bool delivered = phase == "deliver" || (phase == "late" && reduces);
          if (world.is_chief()) CHECK(again->lines.size() == (delivered ? 1 : 0));
        }
      }
    }
  });
}

TEST_CASE("early stopping: all ranks stop at one step, and a run that is interrupted stops at the same") {
  // Of the mean over the ranks the best is 0.25 of step 6; no rank alone has its best there.
  const auto loss_of = [](std::int64_t step, int rank, int ranks) {
    const double mean = step == 6 ? 0.25 : 1.0 + 0.125 * static_cast<double>(step % 3);
    return mean + (ranks == 1 ? 0 : (rank == 0 ? 8.0 : -8.0 / (ranks - 1)) * static_cast<double>(step % 2));
  };
  everywhere([&](const Communicator& world) {
    for (const std::int64_t interrupted : {0, 3, 6, 7, 10, 11}) {
      CAPTURE(interrupted);
      const SharedFolder folder(world);
      const auto launch = [&](std::int64_t until) {
        Rank rank(world);
        auto options = rank.options(folder.path);
        options.save_checkpoint_steps = 1;
        const auto hook =
            std::make_shared<EarlyStoppingHook>(EarlyStoppingHook::Options{.patience = 5, .min_delta = 0.5});
        options.hooks = {hook};
        MonitoredTrainingSession session(world, rank.state, options);
        while (!session.should_stop() && session.global_step() < until) {
          session.run([&](StepContext& step) -> StepValues {
            return {{"loss", loss_of(step.number() + 1, step.rank(), step.ranks())}};
          });
        }
        session.close();
        if (session.global_step() >= 6) {
          CHECK(hook->best() == doctest::Approx(0.25));
          CHECK(hook->best_step() == 6);
        }
        return std::pair(session.global_step(), session.stop_reason());
      };
      if (interrupted > 0) CHECK(launch(interrupted).first == interrupted);
      const auto [step, reason] = launch(50);
      CHECK(step == 11);
      CHECK(reason == "early stopping: the best loss is 0.25, of step 6, 5 steps ago");
    }
  });
}

TEST_CASE("early stopping that is added to a run begins there, and one that is taken away does no harm") {
  everywhere([](const Communicator& world) {
    const SharedFolder folder(world);
    std::vector<std::int64_t> ends;
    for (const bool watched : {false, true, false}) {
      Rank rank(world);
      auto options = rank.options(folder.path);
      if (watched)
        options.hooks = {std::make_shared<EarlyStoppingHook>(EarlyStoppingHook::Options{.patience = 3})};
      MonitoredTrainingSession session(world, rank.state, options);
      for (int i = 0; i < 9 && !session.should_stop(); ++i) {
        session.run([](StepContext&) -> StepValues { return {{"loss", 1.0}}; });
      }
      session.close();
      ends.push_back(session.global_step());
      if (world.is_chief() && watched) {
        CHECK(rank.messages->contain(
            "'/session/hooks/early_stopping/loss' is not in the checkpoint: going on"));
      }
    }
    CHECK(ends == Steps{9, 13, 22});
  });
}

// A checkpoint of a step holds what hooks made of that step, although the saver comes first in the list.
TEST_CASE("the saver looks last: what after_run of a hook changes is in the checkpoint of its step") {
  everywhere([](const Communicator& world) {
    const SharedFolder folder(world);
    {
      Rank rank(world);
      auto options = rank.options(folder.path);
      options.save_checkpoint_steps = 2;
      options.hooks = {std::make_shared<test::Recorder>([&](std::string_view phase, RunContext& context) {
        if (phase == "after_run") rank.counters[0] = context.global_step();
      })};
      MonitoredTrainingSession session(world, rank.state, options);
      for (int i = 0; i < 3; ++i) session.run(test::gradient_step);
      session.close();
    }
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.config.restore_from = "ckpt-00000002.h5";
    MonitoredTrainingSession session(world, rank.state, options);
    CHECK(rank.counters[0] == 2);
    session.close();
  });
}

}  // namespace lockstep
