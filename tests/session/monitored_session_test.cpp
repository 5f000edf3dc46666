#include <functional>
#include <set>

#include <lockstep/hooks/checkpoint_saver.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/session/aborted_error.hpp>

#include "mpi_ranks.hpp"
#include "session_support.hpp"

// What a MonitoredSession and a SingularMonitoredSession do as a whole. Checks never leave early.

namespace lockstep {
namespace {

using test::contains;
using test::each_rank_in_turn;
using test::on_all_ranks;
using test::Rank;
using test::Recorder;
using test::same_on_all;
using test::SharedFolder;
using test::Steps;
using test::thrown;
using Hooks = std::vector<std::shared_ptr<SessionRunHook>>;

SessionCreatorOptions creator_options(const Rank& rank, const std::filesystem::path& folder = {}) {
  const auto options = rank.options(folder);
  return {.checkpoint_dir = folder, .scaffold = options.scaffold, .config = options.config};
}

std::unique_ptr<MonitoredSession> make_session(Rank& rank, bool recovers, const Hooks& hooks = {},
                                               const std::filesystem::path& folder = {}) {
  auto creator = make_session_creator(rank.world, rank.state, creator_options(rank, folder));
  if (recovers) {
    return std::make_unique<MonitoredSession>(std::move(creator), MonitoredSessionOptions{.hooks = hooks});
  }
  return std::make_unique<SingularMonitoredSession>(std::move(creator),
                                                    MonitoredSessionOptions{.hooks = hooks});
}

std::shared_ptr<CheckpointSaverHook> saver_every(std::int64_t steps) {
  return std::make_shared<CheckpointSaverHook>(CheckpointSaverHook::Options{.save_steps = steps});
}

/// A hook that throws once: in a phase, when so many steps are done.
template <class Error>
std::shared_ptr<Recorder> throws_in(std::string_view phase, std::int64_t steps, bool me) {
  return std::make_shared<Recorder>([=, armed = me](std::string_view now, RunContext& context) mutable {
    if (now != phase || context.global_step() != steps || !std::exchange(armed, false)) return;
    throw Error("thrown in " + std::string(phase));
  });
}

std::string by(int who) {
  return who == 0 ? "" : "rank " + std::to_string(who) + ": ";
}

}  // namespace

// TF: MonitoredSession.test_defaults
TEST_CASE("a session of defaults runs: real clock, real threads, no directory, no hooks") {
  on_all_ranks([](const Communicator& world) {
    State state;
    state.parameter("w", {5});
    {
      MonitoredSession session(make_session_creator(world, state));
      CHECK(session.global_step() == 0);
      CHECK(!session.should_stop());
      CHECK(session.stop_reason().empty());
      CHECK(session.restored_from().empty());
      session.run(test::gradient_step);
      CHECK(session.global_step() == 1);
    }
    CHECK(state.parameters()[0] == -0.25F);
    State another;
    MonitoredTrainingSession training(world, another);
    training.run(test::plain_step);
    training.close();
    CHECK(training.global_step() == 1);
  });
}

// TF: MonitoredTrainingSession.test_save_graph_def
TEST_CASE("beside checkpoints, the file that lists them, events and the status nothing is written") {
  on_all_ranks([](const Communicator& world) {
    const SharedFolder folder(world);
    Rank rank(world);
    MonitoredTrainingSession session(world, rank.state, rank.options(folder.path));
    session.run(test::gradient_step);
    session.close();
    if (!world.is_chief()) return;
    std::set<std::string> names;
    for (const auto& entry : PosixFileSystem().open_directory(folder.path)->list()) {
      names.insert(entry.name.starts_with("events.out.tfevents.") ? "events" : entry.name);
    }
    CHECK(names == std::set<std::string>{"checkpoint.json", "ckpt-00000000.h5", "ckpt-00000001.h5", "events",
                                         "status.json"});
  });
}

// TF: MonitoredSession.test_recovery
TEST_CASE("chief and workers restart from a directory, and from an exact file") {
  on_all_ranks([](const Communicator& world) {
    const SharedFolder folder(world);
    for (const std::string_view from : {"nothing", "directory", "newest", "older"}) {
      CAPTURE(from);
      Rank rank(world);
      auto options = creator_options(rank, folder.path);
      if (from == "newest") options.config.restore_from = "ckpt-00000004.h5";
      if (from == "older") options.config.restore_from = "ckpt-00000003.h5";
      std::shared_ptr<SessionCreator> creator;
      if (world.is_chief()) {
        creator = std::make_shared<ChiefSessionCreator>(world, rank.state, options);
      } else {
        creator = std::make_shared<WorkerSessionCreator>(world, rank.state, options);
      }
      MonitoredSession session(creator, {.hooks = {saver_every(1)}});
      const std::int64_t begins = from == "directory" ? 2 : from == "newest" ? 4 : from == "older" ? 3 : 0;
      CHECK(session.global_step() == begins);
      CHECK(rank.state.parameters()[4] == 1.0F - 0.25F * static_cast<float>(begins));
      for (int i = 0; i < 2; ++i) session.run(test::gradient_step);
      CHECK(session.global_step() == begins + 2);
      session.close();
    }
  });
}

// TF: MonitoredSession.test_exit_cleanly_on_out_of_range_exception
// TF: SingularMonitoredSession.test_exit_cleanly_on_out_of_range_exception
TEST_CASE(
    "input that ends, wherever it is read, ends the run cleanly on all: nothing after it runs, hooks end") {
  each_rank_in_turn([](const Communicator& world, bool me, int who) {
    for (const bool recovers : {false, true}) {
      for (const std::string_view phase : {"before_run", "step", "raw", "after_run"}) {
        CAPTURE(recovers);
        CAPTURE(phase);
        const SharedFolder folder(world);
        Rank rank(world);
        const auto reader = throws_in<EndOfInput>(phase, 2, me);
        const auto recorder = std::make_shared<Recorder>();
        const auto session = make_session(rank, recovers, {reader, recorder, saver_every(100)}, folder.path);
        int reached = 0;
        const auto error = thrown([&] {
          for (int i = 0; i < 10 && !session->should_stop(); ++i) {
            const auto step = [&](StepContext& context) {
              if (me && phase == "step" && context.number() == 2) throw EndOfInput("thrown in step");
              return test::gradient_step(context);
            };
            session->run_step_fn([&](StepFnContext& context) {
              context.session().run([&](StepContext& raw) {
                if (me && phase == "raw" && raw.number() == 2) throw EndOfInput("thrown in raw");
                return test::plain_step(raw);
              });
              context.run_with_hooks(step);
              if (context.session().global_step() == 3) ++reached;
            });
          }
          session->close();
        });
        CHECK(error == "");
        CHECK(session->should_stop());
        // A step of which a rank has had no data is dropped; one that is over when its hook throws counts,
        // and the one that the others are in meanwhile does not.
        CHECK(session->global_step() == 2);
        CHECK(reached == 0);
        CHECK(session->stop_reason() ==
              "thrown in " + std::string(phase) + " on rank " + std::to_string(who));
        CHECK(!session->stopped_early());
        CHECK(reader->count("end") == 1);
        CHECK(recorder->count("end") == 1);
        CHECK(recorder->count("on_error") == 0);
        // The hook behind the one that threw does not see that step on its rank.
        CHECK(recorder->count("after_run") == (me && phase == "after_run" ? 1 : 2));
        if (world.is_chief()) CHECK(folder.saved() == Steps{0, 2});
      }
    }
  });
}

// TF: MonitoredSession.test_exit_cleanly_on_stop_iteration_exception
// TF: MonitoredSession.test_step_request_stop_in_a_loop
// TF: MonitoredSession.test_step_request_stop_without_a_with_block
TEST_CASE("a step function that asks to stop ends the loop around it on all ranks, and nothing is thrown") {
  each_rank_in_turn([](const Communicator& world, bool me, int who) {
    for (const bool recovers : {false, true}) {
      CAPTURE(recovers);
      Rank rank(world);
      const auto recorder = std::make_shared<Recorder>();
      const auto session = make_session(rank, recovers, {recorder});
      int calls = 0;
      bool went_on = false;
      const auto error = thrown([&] {
        while (calls < 10 && !session->should_stop()) {
          session->run_step_fn([&](StepFnContext& context) {
            ++calls;
            if (me) {
              context.request_stop("enough");
              went_on = true;
            }
            context.run_with_hooks(test::gradient_step);
          });
        }
      });
      CHECK(error == "");
      CHECK(calls == 1);
      CHECK(!went_on);
      CHECK(session->should_stop());
      CHECK(session->stop_reason() == "enough on rank " + std::to_string(who));
      CHECK(session->global_step() == 0);
      CHECK(recorder->count("after_run") == 0);
      session->close();
      CHECK(recorder->count("end") == 1);
    }
  });
}

// TF: MonitoredSession.test_step_request_stop_with_returning_a_type
TEST_CASE("what a step function returns comes back; nothing does when it asked to stop") {
  on_all_ranks([](const Communicator& world) {
    Rank rank(world);
    const auto session = make_session(rank, true);
    const auto doubled = [](StepFnContext& context) {
      return 2 * static_cast<int>(*context.run_with_hooks(test::plain_step).find("loss"));
    };
    CHECK(session->run_step_fn(doubled) == 0);
    CHECK(session->run_step_fn(doubled) == 2);
    const std::function<std::string(StepFnContext&)> stops = [](StepFnContext& context) -> std::string {
      if (context.session().global_step() == 2) context.request_stop();
      return "went on";
    };
    CHECK(session->run_step_fn(stops) == std::nullopt);
    CHECK(session->should_stop());
    CHECK(session->global_step() == 2);
    session->close();
  });
}

// TF: MonitoredSession.test_step_fn_belongs_to_a_class
TEST_CASE("a step function may be a member function, an object, or a function") {
  struct Model {
    void step(StepFnContext& context) {
      context.run_with_hooks(test::gradient_step);
      ++steps;
    }
    void operator()(StepFnContext& context) { step(context); }
    int steps = 0;
  };
  on_all_ranks([](const Communicator& world) {
    Rank rank(world);
    const auto session = make_session(rank, true);
    Model model;
    session->run_step_fn(std::bind_front(&Model::step, &model));
    session->run_step_fn(std::ref(model));
    session->run_step_fn(+[](StepFnContext& context) { context.run_with_hooks(test::gradient_step); });
    CHECK(model.steps == 2);
    CHECK(session->global_step() == 3);
    session->close();
  });
}

// TF: MonitoredSession.test_step_fn_has_the_same_hooks_behavior_without_recovery
TEST_CASE(
    "raw part, hooked part, then after_run see each other's changes in this order, with and without "
    "recovery") {
  on_all_ranks([](const Communicator& world) {
    for (const bool recovers : {false, true}) {
      Rank rank(world);
      std::vector<std::string> calls;
      const auto recorder = std::make_shared<Recorder>([&](std::string_view phase, RunContext&) {
        calls.push_back(std::string(phase) + " " + std::to_string(rank.counters[0]));
      });
      const auto session = make_session(rank, recovers, {recorder});
      const auto count = [&](StepContext& step) {
        ++rank.counters[0];
        return test::plain_step(step);
      };
      session->run_step_fn([&](StepFnContext& context) {
        context.session().run(count);
        calls.push_back("raw " + std::to_string(rank.counters[0]));
        context.run_with_hooks(count);
        calls.push_back("hooked " + std::to_string(rank.counters[0]));
      });
      CHECK(calls == std::vector<std::string>{"begin 0", "after_create_session 0", "raw 1", "before_run 1",
                                              "after_run 2", "hooked 2"});
      session->close();
    }
  });
}

// TF: MonitoredSession.test_recovers_from_an_exception_in_step_fn
// TF: MonitoredSession.test_recovers_from_an_exception_in_step_fn_after_hooks
// TF: MonitoredSession.test_step_fn_doesnt_recover_when_it_wasnt_asked_to
TEST_CASE(
    "a step function that is aborted, before or after its hooked part, is called again, if recovery is on") {
  each_rank_in_turn([](const Communicator& world, bool me, int who) {
    for (const bool recovers : {false, true}) {
      for (const bool after_hooks : {false, true}) {
        CAPTURE(recovers);
        CAPTURE(after_hooks);
        const SharedFolder folder(world);
        Rank rank(world);
        const auto recorder = std::make_shared<Recorder>();
        const auto session = make_session(rank, recovers, {recorder, saver_every(1)}, folder.path);
        session->run(test::gradient_step);
        int bodies = 0;
        bool aborts = me;
        const auto error = thrown([&] {
          session->run_step_fn([&](StepFnContext& context) {
            ++bodies;
            context.session().run(test::plain_step);
            if (!after_hooks && std::exchange(aborts, false)) throw AbortedError("gone");
            context.run_with_hooks(test::gradient_step);
            if (after_hooks && std::exchange(aborts, false)) throw AbortedError("gone");
            // The others hear of it here at the latest.
            context.session().run(test::plain_step);
          });
        });
        CHECK(bodies == (recovers ? 2 : 1));
        CHECK(recorder->count("after_create_session") == (recovers ? 2 : 1));
        if (recovers) {
          CHECK(error == "");
          CHECK(session->global_step() == (after_hooks ? 3 : 2));  // a step that was saved is not taken back
          session->close();
        } else {
          CHECK(contains(error, by(who) + "gone"));
          CHECK(same_on_all(world, error));
          CHECK(session->should_stop());
          CHECK(recorder->count("on_error") == 1);
        }
      }
    }
  });
}

// TF: MonitoredSession.test_step_fn_exception_from_before_run
TEST_CASE(
    "what before_run throws in a step function comes out of it on all ranks, once its raw part has run") {
  each_rank_in_turn([](const Communicator& world, bool me, int who) {
    for (const bool recovers : {false, true}) {
      CAPTURE(recovers);
      Rank rank(world);
      const auto hook = throws_in<DataError>("before_run", 1, me);
      const auto session = make_session(rank, recovers, {hook});
      int raw = 0;
      int hooked = 0;
      const auto error = thrown([&] {
        for (int i = 0; i < 3; ++i) {
          session->run_step_fn([&](StepFnContext& context) {
            context.session().run([&](StepContext& step) {
              ++raw;
              return test::plain_step(step);
            });
            context.run_with_hooks(test::gradient_step);
            ++hooked;
          });
        }
      });
      CHECK(error == "DataError: " + by(who) + "thrown in before_run");
      CHECK(raw == 2);
      CHECK(hooked == 1);
      CHECK(hook->count("after_run") == 1);
      CHECK(hook->count("end") == 0);
      CHECK(session->global_step() == 1);
    }
  });
}

// TF: MonitoredSession.test_stop_cleanly_when_no_exception_in_with_body
// TF: SingularMonitoredSession.test_stop_cleanly_when_no_exception_in_with_body
TEST_CASE("leaving the block closes: hooks end, the last step is saved, the directory is free") {
  on_all_ranks([](const Communicator& world) {
    for (const bool recovers : {false, true}) {
      CAPTURE(recovers);
      const SharedFolder folder(world);
      Rank rank(world);
      const auto recorder = std::make_shared<Recorder>();
      {
        const auto session = make_session(rank, recovers, {recorder, saver_every(100)}, folder.path);
        for (int i = 0; i < 3; ++i) session->run(test::gradient_step);
      }
      CHECK(recorder->count("end") == 1);
      CHECK(recorder->count("on_error") == 0);
      if (!world.is_chief()) continue;
      CHECK(folder.saved() == Steps{0, 3});
      CHECK(folder.status().state == "done");
      CHECK(!folder.locked());
    }
  });
}

// TF: MonitoredSession.test_merge_run_options_from_hooks
// TF: MonitoredSession.test_merge_caller_and_hook_run_options
TEST_CASE(
    "what hooks and the caller ask of one step, on this rank and on others, is merged into one answer") {
  each_rank_in_turn([](const Communicator& world, bool me, int who) {
    const int other = (who + 1) % world.size();
    const SharedFolder folder(world);
    Rank rank(world);
    const auto asks = [&](bool mine, std::string_view reason) {
      return std::make_shared<Recorder>([=](std::string_view phase, RunContext& context) {
        if (phase != "before_run" || !mine) return;
        if (context.global_step() == 1) context.save_now();
        if (context.global_step() == 3) context.request_stop(reason);
      });
    };
    const std::vector<float> fed{1};
    const auto feeds = [&](const std::string& what) {
      return std::make_shared<Recorder>([&fed, what](std::string_view phase, RunContext& context) {
        if (phase == "before_run") context.feeds().add(what, std::span(fed));
      });
    };
    const auto session =
        make_session(rank, true,
                     {asks(me, "first"), asks(me, "second"), asks(world.rank() == other, "third"), feeds("a"),
                      feeds("b"), saver_every(100)},
                     folder.path);
    Feeds mine;
    mine.add("c", std::span(fed));
    for (int i = 0; i < 10 && !session->should_stop(); ++i) {
      if (me && i == 1) session->save_now();
      session->run(
          [&](StepContext& step) {
            CHECK(step.feeds().size() == 3);
            for (const char* name : {"a", "b", "c"}) CHECK(step.feeds().get<float>(name)[0] == 1);
            return test::gradient_step(step);
          },
          mine);
    }
    CHECK(mine.size() == 1);
    CHECK(session->global_step() == 4);
    // Of several wishes the first of the lowest rank is told.
    const int told = std::min(who, other);
    CHECK(session->stop_reason() == std::string(told == who ? "first" : "third") +
                                        (told == 0 ? "" : " (asked by rank " + std::to_string(told) + ")"));
    session->close();
    if (world.is_chief()) CHECK(folder.saved() == Steps{0, 2, 4});
  });
}

// TF: SingularMonitoredSession.test_handles_initialization
TEST_CASE("a singular session initializes its state by itself, with nothing but a creator") {
  on_all_ranks([](const Communicator& world) {
    State state;
    state.parameter("w", {2});
    Scaffold scaffold;
    scaffold.init_fn = [](State& fresh) { fresh.parameters()[1] = 7; };
    SingularMonitoredSession session(make_session_creator(world, state, {.scaffold = scaffold}));
    CHECK(state.parameters()[1] == 7);
    CHECK(state.parameters()[0] == 0);
    session.run(test::plain_step);
    CHECK(session.global_step() == 1);
    session.close();
  });
}

// TF: SingularMonitoredSession.test_raw_session
// TF: SingularMonitoredSession.test_stop_cleanly_when_no_exception_in_with_body
TEST_CASE("the raw session of a singular one runs without hooks while that is open, and is null afterwards") {
  on_all_ranks([](const Communicator& world) {
    Rank rank(world);
    const auto recorder = std::make_shared<Recorder>();
    SingularMonitoredSession session(make_session_creator(world, rank.state, creator_options(rank)),
                                     {.hooks = {recorder}});
    session.run(test::gradient_step);
    RawSession* raw = session.raw_session();
    REQUIRE(raw != nullptr);
    CHECK(raw->run([](StepContext& step) -> StepValues {
               return {{"rank", static_cast<double>(step.rank())}};
             })
              .find("rank") == test::mean_rank(world));
    CHECK(raw->global_step() == 1);
    CHECK(recorder->count("before_run") == 1);
    session.request_stop("enough");
    CHECK(!session.should_stop());
    raw->run(test::plain_step);
    CHECK(session.should_stop());
    CHECK(session.stop_reason() == "enough");
    session.close();
    CHECK(session.raw_session() == nullptr);
  });
}

}  // namespace lockstep
