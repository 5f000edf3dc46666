#include <lockstep/hooks/feed_fn.hpp>
#include <lockstep/hooks/final_ops.hpp>
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

}  // namespace

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
