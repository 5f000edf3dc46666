#include <bit>
#include <cmath>

#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/mpi/simulated_world.hpp>
#include <lockstep/reduce/canonical_tree.hpp>
#include <lockstep/session/aborted_error.hpp>
#include <lockstep/session/looper_thread.hpp>

#include "session_support.hpp"

// Recovery, step functions, threads and ranks without data, on 1 to 4 simulated ranks. Checks never leave
// early.

namespace lockstep {
namespace {

using test::contains;
using test::Rank;
using test::Recorder;
using test::same_on_all;
using test::SharedFolder;
using test::Steps;
using test::thrown;

/// A claim on 1 to 4 simulated ranks, each of them in turn the one that differs.
void with_each(const std::function<void(const Communicator& world, bool me, int who)>& check) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (int who = 0; who < ranks; ++who) {
      CAPTURE(ranks);
      CAPTURE(who);
      SimulatedWorld{ranks, 0, static_cast<std::uint64_t>(10 * ranks + who)}.run(
          [&](const Communicator& world) { check(world, world.rank() == who, who); });
    }
  }
}

}  // namespace

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
      }
    }
  });
}

// TF: MonitoredSession.test_retry_initialization_on_aborted_error
TEST_CASE("a creation that is aborted once is repeated") {
  with_each([](const Communicator& world, bool me, int) {
    Rank rank(world);
    auto options = rank.options();
    bool aborts = me;
    options.scaffold.local_init = [&](State&) {
      if (std::exchange(aborts, false)) throw UnavailableError("not yet");
    };
    MonitoredTrainingSession session(world, rank.state, options);
    session.run(test::gradient_step);
    CHECK(rank.state.parameters()[0] == 0.75F);
    session.close();
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

// TF: SingularMonitoredSession.test_do_not_handle_aborted_error
TEST_CASE("a singular session does not recover") {
  with_each([](const Communicator& world, bool me, int) {
    Rank rank(world);
    const auto options = rank.options();
    SingularMonitoredSession session(
        make_session_creator(world, rank.state, {.scaffold = options.scaffold, .config = options.config}));
    CHECK(session.raw_session() != nullptr);
    const auto error = thrown([&] {
      session.run([&](StepContext& step) {
        if (me) throw AbortedError("gone");
        return test::gradient_step(step);
      });
    });
    CHECK(contains(error, "gone"));
    CHECK(same_on_all(world, error));
    CHECK(session.raw_session() == nullptr);
  });
}

// TF: MonitoredSession.test_step_fn_with_hooks, MonitoredSession.test_step_fn_example
TEST_CASE("a step function runs steps without hooks and with them") {
  with_each([](const Communicator& world, bool, int) {
    Rank rank(world);
    auto options = rank.options();
    const auto recorder = std::make_shared<Recorder>();
    options.hooks = {recorder, std::make_shared<StopAtStepHook>(std::nullopt, 3)};
    MonitoredTrainingSession session(world, rank.state, options);
    double raw = -1;
    while (!session.should_stop()) {
      session.run_step_fn([&](StepFnContext& context) {
        raw = *context.session()
                   .run([](StepContext& step) {
                     return StepValues{{"mine", static_cast<double>(step.rank())}};
                   })
                   .find("mine");
        const auto values = context.run_with_hooks(test::gradient_step);
        CHECK(values.find("loss") == test::mean_rank(world));
      });
      CHECK(raw == test::mean_rank(world));
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

// TF: MonitoredSession.test_regular_exception_reported_to_coord_pass_through_run
// TF: RecoverableSession.test_recovery_from_non_preemption_in_coordinator
TEST_CASE("what a thread reports stops all after the next step, and close throws it: no end, no final save") {
  with_each([](const Communicator& world, bool me, int who) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    const auto recorder = std::make_shared<Recorder>([&](std::string_view now, RunContext& context) {
      if (now != "before_run" || context.global_step() != 2 || !me) return;
      context.coordinator().stop_on_exception([] { throw DataError("lost the feed"); }, "feeder");
    });
    options.hooks = {recorder};
    MonitoredTrainingSession session(world, rank.state, options);
    for (int i = 0; i < 20 && !session.should_stop(); ++i) session.run(test::gradient_step);
    CHECK(session.global_step() == 3);
    const auto error = thrown([&] { session.close(); });
    CHECK(error == std::string("DataError: ") + (who == 0 ? "" : "rank " + std::to_string(who) + ": ") +
                       "lost the feed");
    CHECK(recorder->count("end") == 0);
    CHECK(recorder->count("on_error") == 1);
    if (world.is_chief()) {
      CHECK(folder.saved() == Steps{0});
      CHECK(rank.messages->contain("rank " + std::to_string(who) + " failed at step 3 in thread 'feeder'"));
    }
  });
}

// TF: RecoverableSession.test_recovery_from_coordinator_exception
TEST_CASE("an aborted thread makes the session anew") {
  with_each([](const Communicator& world, bool me, int) {
    Rank rank(world);
    auto options = rank.options();
    bool aborts = me;
    const auto recorder = std::make_shared<Recorder>([&](std::string_view now, RunContext& context) {
      if (now != "before_run" || context.global_step() != 2 || !std::exchange(aborts, false)) return;
      context.coordinator().stop_on_exception([] { throw AbortedError("gone"); });
    });
    options.hooks = {recorder, std::make_shared<StopAtStepHook>(std::nullopt, 4)};
    MonitoredTrainingSession session(world, rank.state, options);
    session.train(test::gradient_step);
    CHECK(session.global_step() == 4);
    CHECK(recorder->count("after_create_session") == 2);
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
