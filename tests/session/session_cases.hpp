#pragma once

#include <csignal>
#include <limits>

#include <lockstep/hooks/checkpoint_saver.hpp>
#include <lockstep/hooks/logging_tensor.hpp>
#include <lockstep/hooks/nan_tensor.hpp>
#include <lockstep/hooks/stop_at_step.hpp>

#include "failing_saver.hpp"
#include "session_support.hpp"

// What a session must do, run over simulated ranks and over real MPI ranks. Checks never leave early: all
// ranks go through the same collectives.

namespace lockstep::test {

inline std::shared_ptr<StopAtStepHook> last_step(std::int64_t step) {
  return std::make_shared<StopAtStepHook>(std::nullopt, step);
}

// --- saving, restoring, stopping ---

// TF: MonitoredTrainingSession.test_saving_restoring_checkpoint
inline void check_saving_and_restoring(const Communicator& world) {
  const SharedFolder folder(world);
  {
    Rank rank(world);
    MonitoredTrainingSession session(world, rank.state, rank.options(folder.path));
    CHECK(session.global_step() == 0);
    CHECK(session.restored_from().empty());
    if (world.is_chief()) {
      CHECK(folder.status().state == "running");
      CHECK(folder.locked());
    }
    for (int i = 0; i < 2; ++i) session.run(gradient_step);
    session.close();
    CHECK(session.stop_reason() == "closed by the program");
  }
  world.barrier("the test");
  if (world.is_chief()) {
    CHECK(folder.saved() == Steps{0, 2});
    const auto status = folder.status();
    CHECK(status.state == "done");
    CHECK(status.exit_code == 0);
    CHECK(status.global_step == 2);
    CHECK(status.restarts == 0);
    CHECK(!folder.locked());
  }
  Rank rank(world);
  auto options = rank.options(folder.path);
  int initialized = 0;
  int local = 0;
  options.scaffold.init_fn = [&](State&) { ++initialized; };
  options.scaffold.local_init = [&](State& state) {
    ++local;
    CHECK(state.global_step() == 2);  // after the state has its values
  };
  MonitoredTrainingSession session(world, rank.state, options);
  CHECK(session.global_step() == 2);
  CHECK(session.restored_from() == "ckpt-00000002.h5");
  CHECK(initialized == 0);
  CHECK(local == 1);
  CHECK(rank.state.parameters()[0] == 0.5F);
  CHECK(rank.state.parameters()[4] == 0.5F);
  session.run(gradient_step);
  CHECK(rank.state.parameters()[0] == 0.25F);
  session.close();
  if (world.is_chief()) {
    CHECK(folder.status().restarts == 0);  // the run before was done: nothing was restarted
    CHECK(folder.saved() == Steps{0, 2, 3});
  }
}

inline void check_initial_values_reach_all(const Communicator& world) {
  for (const bool shared : {false, true}) {
    for (const int per_node : {0, 1, 2}) {
      Rank rank(world);
      auto options = rank.options();
      options.config.share_parameters = shared;
      options.config.ranks_per_node = per_node;
      options.scaffold.init_fn = [&](State& state) {
        CHECK(world.is_chief());
        state.parameters()[3] = 7;
        state.slot_values("velocity")[1] = 8;
        rank.counters[1] = 9;
      };
      options.hooks = {std::make_shared<Recorder>([&](std::string_view phase, RunContext& context) {
        if (phase == "after_create_session") CHECK(context.state().parameters()[3] == 7);
      })};
      MonitoredTrainingSession session(world, rank.state, options);
      CHECK(rank.state.parameters()[3] == 7);
      CHECK(rank.state.slot_values("velocity")[1] == 8);
      CHECK(rank.counters[1] == 9);
      session.close();
      world.barrier("all to have looked");
    }
  }
}

// TF: MonitoredTrainingSession.test_save_checkpoint_steps, MonitoredTrainingSession.test_save_checkpoint_secs
inline void check_intervals(const Communicator& world) {
  for (const bool by_seconds : {false, true}) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.save_checkpoint_secs = by_seconds ? 2.0 : 0.0;
    options.save_checkpoint_steps = by_seconds ? 0 : 4;
    options.hooks = {last_step(10)};
    MonitoredTrainingSession session(world, rank.state, options);
    while (!session.should_stop()) {
      // Only the chief's clock decides: those of the others run at another speed.
      rank.clock->advance(Seconds{world.is_chief() ? 0.5 : 100.0 * world.rank()});
      session.run(gradient_step);
    }
    session.close();
    CHECK(session.stop_reason() == "reached step 10");
    if (world.is_chief()) CHECK(folder.saved() == Steps{0, 4, 8, 10});
    Rank again(world);
    MonitoredTrainingSession restarted(world, again.state, again.options(folder.path));
    CHECK(restarted.global_step() == 10);
    CHECK(restarted.restored_from() == "ckpt-00000010.h5");
    restarted.close();
  }
}

/// What a run that ended is called stays, where a launch that does not fit is refused.
inline void check_a_refused_launch(const Communicator& world) {
  for (const bool done : {true, false}) {
    CAPTURE(done);
    const SharedFolder folder(world);
    {
      Rank rank(world);
      MonitoredTrainingSession session(world, rank.state, rank.options(folder.path));
      session.run(gradient_step);
      if (!done) rank.signals->raise(SIGUSR1);
      session.run(gradient_step);
      session.close();
    }
    world.barrier("the test");
    const RunStatus before = world.is_chief() ? folder.status() : RunStatus();
    Rank other(world);
    other.state.setting("seed", "2");
    const std::string error = thrown(
        [&] { const MonitoredTrainingSession session(world, other.state, other.options(folder.path)); });
    CHECK(error.starts_with("EnvironmentError: "));
    if (!world.is_chief()) continue;
    CHECK(!folder.locked());
    CHECK(before.state == (done ? "done" : "stopped"));
    const RunStatus after = folder.status();
    if (done) {
      CHECK(after == before);
    } else {
      // Whoever launches again and again should hear that this is in vain.
      CHECK(after.state == "failed");
      CHECK(after.exit_code == 78);
    }
    CHECK(after.global_step == 2);
  }
}

// TF: MonitoredTrainingSession.test_custom_saving
inline void check_no_default_saver(const Communicator& world) {
  const SharedFolder folder(world);
  const auto chief_only = std::make_shared<Recorder>();
  for (int launch = 0; launch < 2; ++launch) {
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.save_checkpoint_secs = 0;
    if (launch == 0) options.chief_only_hooks = {chief_only};
    MonitoredTrainingSession session(world, rank.state, options);
    CHECK(session.global_step() == 0);
    for (int i = 0; i < 3; ++i) session.run(gradient_step);
    session.close();
  }
  CHECK(chief_only->count("begin") == (world.is_chief() ? 1 : 0));
  CHECK(chief_only->count("after_run") == (world.is_chief() ? 3 : 0));
  if (world.is_chief()) CHECK(folder.saved().empty());
}

// TF: Scaffold.test_raise_error_if_more_than_one_cached_item
inline void check_a_saver_of_ones_own(const Communicator& world) {
  for (const bool chief_only : {false, true}) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    const auto saver = std::make_shared<CheckpointSaverHook>(CheckpointSaverHook::Options{.save_steps = 3});
    (chief_only ? options.chief_only_hooks : options.hooks) = {saver};
    // Two in one directory: an error, where the second is on the chief alone too.
    const auto error = thrown([&] { MonitoredTrainingSession(world, rank.state, options); });
    CHECK(error.starts_with("UsageError: two hooks save checkpoints ('checkpoint_saver every "));
    CHECK(contains(error, "'checkpoint_saver every 600 s'"));
    CHECK(contains(error, "'checkpoint_saver every 3 steps'"));
    CHECK(same_on_all(world, error));
    options.save_checkpoint_secs = 0;
    MonitoredTrainingSession session(world, rank.state, options);
    for (int i = 0; i < 4; ++i) session.run(gradient_step);
    session.close();
    if (world.is_chief()) CHECK(folder.saved() == Steps{0, 3, 4});
  }
  Rank rank(world);
  auto options = rank.options();
  options.hooks = {std::make_shared<CheckpointSaverHook>(CheckpointSaverHook::Options{.save_steps = 3})};
  const auto error = thrown([&] { MonitoredTrainingSession(world, rank.state, options); });
  CHECK(contains(error, "has nowhere to save to; set checkpoint_dir"));
}

// TF: MonitoredTrainingSession.test_summaries_steps, MonitoredTrainingSession.test_summaries_secs
inline void check_summaries(const Communicator& world) {
  for (const bool by_seconds : {false, true}) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.save_summaries_steps = by_seconds ? std::nullopt : std::optional<std::int64_t>(8);
    options.save_summaries_secs = by_seconds ? std::optional(8.0) : std::nullopt;
    options.log_step_count_steps = 10;
    MonitoredTrainingSession session(world, rank.state, options);
    for (int i = 0; i < 30; ++i) {
      rank.clock->advance(Seconds{world.is_chief() ? 1.0 : 0.001});
      session.run(gradient_step);
      if (i == 4) session.summary().scalar("mine", 2.5, 5);
    }
    session.close();
    if (world.is_chief()) {
      const auto events = events_in(folder.path);
      CHECK(steps_of(events, "loss") == Steps{1, 9, 17, 25});
      CHECK(steps_of(events, "global_step/sec") == Steps{11, 21});
      CHECK(steps_of(events, "mine") == Steps{5});
      CHECK(steps_of(events, "checkpoint") == Steps{0, 30});
      for (const auto& event : events) {
        if (event.tag == "loss") CHECK(event.value == doctest::Approx(mean_rank(world)));
      }
    }
  }
}

// TF: MonitoredSession.test_last_step, MonitoredSession.test_num_steps
// And the stop test before the first step.
inline void check_stops(const Communicator& world) {
  const SharedFolder folder(world);
  const auto launch = [&](std::shared_ptr<SessionRunHook> stop, std::int64_t expected) {
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.hooks = {std::move(stop)};
    std::int64_t runs = 0;
    MonitoredTrainingSession session(world, rank.state, options);
    session.train([&](StepContext& step) {
      ++runs;
      return gradient_step(step);
    });
    CHECK(session.global_step() == expected);
    CHECK(!session.stopped_early());
    return runs;
  };
  CHECK(launch(std::make_shared<StopAtStepHook>(3), 3) == 3);
  CHECK(launch(last_step(5), 5) == 2);
  CHECK(launch(std::make_shared<StopAtStepHook>(4), 9) == 4);
  CHECK(launch(last_step(9), 9) == 0);  // restarted at its last step: nothing is left to do
  CHECK(launch(last_step(4), 9) == 0);
  if (world.is_chief()) {
    CHECK(folder.status().state == "done");
    CHECK(folder.status().reason == "reached step 4");
    CHECK(folder.saved() == Steps{0, 3, 5, 9});
  }
}

/// A step of every kind: with gradients, and without.
inline std::vector<MonitoredTrainingSession::Step> all_steps() {
  return {gradient_step, plain_step};
}

inline void check_one_rank_stops_all(const Communicator& world) {
  for (const auto& step : all_steps()) {
    for (int who = 0; who < world.size(); ++who) {
      for (const std::string_view phase : {"before_run", "step", "after_run", "between"}) {
        CAPTURE(who);
        CAPTURE(phase);
        Rank rank(world);
        auto options = rank.options();
        const bool me = world.rank() == who;
        options.hooks = {std::make_shared<Recorder>([&](std::string_view now, RunContext& context) {
          const std::int64_t at = now == "before_run" ? 2 : 3;
          if (me && now == phase && context.global_step() == at) context.request_stop("enough");
        })};
        MonitoredTrainingSession session(world, rank.state, options);
        std::int64_t runs = 0;
        while (!session.should_stop() && runs < 20) {
          session.run([&](StepContext& context) {
            ++runs;
            if (me && phase == "step" && context.number() == 2) session.request_stop("enough");
            return step(context);
          });
          if (me && phase == "between" && session.global_step() == 3) session.request_stop("enough");
        }
        // Said before the ballot of a step, it holds after that step; said later, after the next.
        CHECK(session.global_step() == (phase == "before_run" || phase == "step" ? 3 : 4));
        const std::string by = who == 0 ? "" : " (asked by rank " + std::to_string(who) + ")";
        CHECK(session.stop_reason() == "enough" + by);
        CHECK(!session.stopped_early());
        session.close();
        CHECK(session.stop_reason() == "enough" + by);
      }
    }
  }
}

inline void check_a_stop_without_a_reason(const Communicator& world) {
  Rank rank(world);
  MonitoredTrainingSession session(world, rank.state, rank.options());
  session.request_stop("");
  session.run(plain_step);
  CHECK(session.should_stop());
  CHECK(session.stop_reason() == "no reason given");
}

inline void check_end_of_input(const Communicator& world) {
  for (const auto& step : all_steps()) {
    for (int who = 0; who < world.size(); ++who) {
      CAPTURE(who);
      const SharedFolder folder(world);
      Rank rank(world);
      auto options = rank.options(folder.path);
      const auto recorder = std::make_shared<Recorder>();
      options.hooks = {recorder};
      MonitoredTrainingSession session(world, rank.state, options);
      session.train([&](StepContext& context) {
        if (world.rank() == who && context.number() == 3) throw EndOfInput();
        return step(context);
      });
      CHECK(session.global_step() == 3);
      CHECK(session.stop_reason() == "end of input on rank " + std::to_string(who));
      CHECK(recorder->count("before_run") == 4);
      CHECK(recorder->count("after_run") == 3);
      CHECK(recorder->count("end") == 1);
      CHECK(recorder->count("on_error") == 0);
      if (world.is_chief()) {
        CHECK(folder.saved() == Steps{0, 3});
        CHECK(folder.status().state == "done");
      }
    }
  }
}

inline void check_late_end_of_input(const Communicator& world) {
  Rank rank(world);
  MonitoredTrainingSession session(world, rank.state, rank.options());
  const int who = world.size() - 1;
  const auto error = thrown([&] {
    session.train([&](StepContext& context) {
      const auto values = gradient_step(context);
      if (world.rank() == who && context.number() == 1) throw EndOfInput();
      return values;
    });
  });
  CHECK(contains(error, "EndOfInput after it had reduced"));
  CHECK(same_on_all(world, error));
}

// --- errors ---

inline const std::vector<std::string>& all_phases() {
  static const std::vector<std::string> phases = {"begin",        "init_fn",
                                                  "local_init",   "after_create_session",
                                                  "before_run",   "before_reduce",
                                                  "after_reduce", "slice",
                                                  "after_run",    "save",
                                                  "before_save",  "after_save",
                                                  "thread",       "end"};
  return phases;
}

/// Those of the chief alone.
inline bool is_of_chief(const std::string& phase) {
  return phase == "init_fn" || phase == "save" || phase == "before_save" || phase == "after_save";
}

/// Where the session says that it was.
inline std::string place_of(const std::string& phase) {
  if (phase == "init_fn" || phase == "local_init") return phase;
  if (phase == "before_reduce" || phase == "after_reduce" || phase == "slice") return "the step";
  if (phase == "thread") return "thread 'feeder'";
  if (phase == "save" || phase == "before_save") return "after_run of 'checkpoint_saver'";
  if (phase == "after_save") return "before_run of 'checkpoint_saver'";
  return phase + " of 'recorder'";
}

/// One rank throws in one phase: every rank throws the same, and nothing is saved that should not be.
inline void check_error(const Communicator& world, int who, const std::string& phase, bool reduces,
                        int per_node, bool shared) {
  CAPTURE(who);
  CAPTURE(phase);
  CAPTURE(reduces);
  CAPTURE(per_node);
  CAPTURE(shared);
  const SharedFolder folder(world);
  Rank rank(world);
  auto options = rank.options(folder.path);
  options.save_checkpoint_secs = 0;
  options.config.ranks_per_node = per_node;
  options.config.share_parameters = shared;
  const auto boom = [&](std::string_view now, std::int64_t number) {
    const bool in_step = phase != "end" && now != "begin" && now != "init_fn" && now != "local_init" &&
                         now != "after_create_session";
    if (world.rank() == who && now == phase && (!in_step || number == 2)) {
      throw DataError("boom in " + std::string(phase));
    }
  };
  options.scaffold.init_fn = [&](State&) { boom("init_fn", 0); };
  options.scaffold.local_init = [&](State&) { boom("local_init", 0); };
  const auto recorder = std::make_shared<Recorder>([&](std::string_view now, RunContext& context) {
    boom(now, now == "after_run" ? context.global_step() - 1 : context.global_step());
    if (now != "before_run") return;
    context.coordinator().stop_on_exception([&] { boom("thread", context.global_step()); }, "feeder");
  });
  class Listener final : public CheckpointSaverListener {
   public:
    explicit Listener(std::function<void(std::string_view, std::int64_t)> act) : act_(std::move(act)) {}
    void before_save(std::int64_t step) override { act_("before_save", step); }
    bool after_save(std::int64_t step) override {
      act_("after_save", step);
      return false;
    }

   private:
    std::function<void(std::string_view, std::int64_t)> act_;
  };
  options.config.executor = std::make_shared<FailingSaver>([&] { boom("save", rank.state.global_step()); },
                                                           std::make_shared<InlineExecutor>());
  options.hooks = {recorder, last_step(3),
                   std::make_shared<CheckpointSaverHook>(CheckpointSaverHook::Options{
                       .save_steps = 2, .listeners = {std::make_shared<Listener>(boom)}})};
  std::unique_ptr<MonitoredTrainingSession> session;
  const auto error = thrown([&] {
    session = std::make_unique<MonitoredTrainingSession>(world, rank.state, options);
    session->train([&](StepContext& step) -> StepValues {
      boom("before_reduce", step.number());
      if (!reduces) {
        boom("after_reduce", step.number());
        boom("slice", step.number());
        return plain_step(step);
      }
      const auto range = step.micro_batches();
      for (auto m = range.first; m < range.last; ++m) {
        std::ranges::fill(step.begin_micro_batch(), 0.0F);
        step.end_micro_batch();
      }
      step.reduce_micro_batches();
      boom("slice", step.number());
      step.finish();
      boom("after_reduce", step.number());
      return {};
    });
  });
  const std::string by = who == 0 ? "" : "rank " + std::to_string(who) + ": ";
  CHECK(error == "DataError: " + by + "boom in " + phase);
  const bool created = session != nullptr;
  CHECK(created ==
        (phase != "begin" && phase != "init_fn" && phase != "local_init" && phase != "after_create_session"));
  if (created) {
    CHECK(session->should_stop());
    CHECK_THROWS_AS(session->run(plain_step), UsageError);
    session->close();
    CHECK(!session->stopped_early());
  }
  if (phase == "end") {
    CHECK(recorder->count("end") == 1);
    CHECK(recorder->count("on_error") == 0);
  } else {
    CHECK(recorder->count("on_error") == 1);
    CHECK(recorder->told == by + "boom in " + phase);
    CHECK(recorder->count("end") == 0);
  }
  if (world.is_chief()) {
    // No final save; but one whose `end` threw is made all the same.
    const bool unsaved = phase == "save" || phase == "before_save";
    if (created)
      CHECK(folder.saved() == (phase == "end" ? Steps{0, 2, 3} : unsaved ? Steps{0} : Steps{0, 2}));
    const std::string failed = "rank " + std::to_string(who) + " failed at step ";
    CHECK(rank.messages->contain(failed));
    CHECK(rank.messages->contain(" in " + place_of(phase) + ": boom in " + phase));
    CHECK(!folder.locked());
    if (phase != "begin") {  // before it, nothing was opened
      CHECK(folder.status().state == "failed");
      CHECK(folder.status().exit_code == 65);
      CHECK(folder.status().reason == by + "boom in " + phase);
    }
  }
}

inline void check_errors(const Communicator& world, int per_node, bool shared) {
  for (const auto& phase : all_phases()) {
    for (int who = 0; who < (is_of_chief(phase) ? 1 : world.size()); ++who) {
      check_error(world, who, phase, true, per_node, shared);
    }
  }
}

/// A rank that fails before it has updated its slice of shared parameters: the others find out in the next
/// step only, but the torn step is not saved in between.
inline void check_a_torn_step_is_not_saved(const Communicator& world, int who, std::int64_t elements,
                                           int per_node, bool shard) {
  CAPTURE(who);
  CAPTURE(elements);
  CAPTURE(per_node);
  const SharedFolder folder(world);
  Rank rank(world, elements);
  rank.state.buffer("statistics", {40});
  auto options = rank.options(folder.path);
  options.save_checkpoint_steps = 1;
  options.config.share_parameters = true;
  options.config.ranks_per_node = per_node;
  options.config.shard_optimizer = shard;
  bool has_part = false;
  MonitoredTrainingSession session(world, rank.state, options);
  const auto error = thrown([&] {
    session.train([&](StepContext& step) -> StepValues {
      const auto range = step.micro_batches();
      for (auto m = range.first; m < range.last; ++m) {
        std::ranges::fill(step.begin_micro_batch(), 1.0F);
        step.end_micro_batch();
      }
      step.reduce_micro_batches();
      const auto slice = step.slice();
      const auto buffers = step.buffer_slice();
      // Of the buffers every node has a copy, and the chief's is saved.
      const bool on_chiefs_node = per_node == 0 || world.rank() < per_node;
      has_part = slice.size() > 0 || (on_chiefs_node && buffers.size() > 0);
      if (world.rank() == who && step.number() == 2) throw DataError("torn");
      const State& state = step.state();
      const auto added = step.sum().subspan(state.parameter_elements());
      for (std::size_t i = slice.first; i < slice.last; ++i) state.parameters()[i] -= step.sum()[i];
      for (std::size_t i = buffers.first; i < buffers.last; ++i) state.buffers()[i] += added[i];
      step.finish();
      return {};
    });
  });
  CHECK(contains(error, "torn"));
  // A rank that updates nothing of what is saved tears nothing.
  const auto parts = world.all_gather(has_part ? 1 : 0);
  if (world.is_chief() && parts[static_cast<std::size_t>(who)] == 1) CHECK(folder.saved() == Steps{0, 1, 2});
}

inline void check_torn_steps_are_not_saved(const Communicator& world) {
  for (int who = 0; who < world.size(); ++who) {
    check_a_torn_step_is_not_saved(world, who, 4096 * world.size(), 0, false);
    // Ranks whose part are buffers alone; and those beyond the smallest node's, which have no shard.
    check_a_torn_step_is_not_saved(world, who, 4096, 0, false);
    check_a_torn_step_is_not_saved(world, who, 5, 2, true);
    check_a_torn_step_is_not_saved(world, who, 20000, 2, true);
    check_a_torn_step_is_not_saved(world, who, 20000, 1, true);
  }
}

inline void check_errors_without_gradients(const Communicator& world) {
  for (const auto& phase : all_phases()) {
    for (int who = 0; who < (is_of_chief(phase) ? 1 : world.size()); ++who) {
      check_error(world, who, phase, false, 0, false);
    }
  }
}

// TF: MonitoredSession.test_regular_exception_pass_through_run
// A type of the program's own passes through on the rank that threw it.
inline void check_foreign_exceptions(const Communicator& world) {
  struct Odd {};
  for (int who = 0; who < world.size(); ++who) {
    for (const bool is_exception : {true, false}) {
      for (const bool late : {false, true}) {
        Rank rank(world);
        MonitoredTrainingSession session(world, rank.state, rank.options());
        const auto error = thrown([&] {
          session.train([&](StepContext& step) {
            const bool me = world.rank() == who && step.number() == 1;
            if (me && !late && is_exception) throw std::runtime_error("my own");
            if (me && !late) throw Odd{};
            const auto values = gradient_step(step);
            if (me && late && is_exception) throw std::runtime_error("my own");
            if (me && late) throw Odd{};
            return values;
          });
        });
        const std::string text = is_exception ? "my own" : "an exception of an unknown type";
        const std::string by = who == 0 ? "" : "rank " + std::to_string(who) + ": ";
        if (is_exception && world.rank() == who) {
          CHECK(error == "runtime_error: " + text);
        } else {
          CHECK(error == "TrainingError: " + by + text);
        }
      }
    }
  }
}

inline void check_several_fail_at_once(const Communicator& world) {
  Rank rank(world);
  MonitoredTrainingSession session(world, rank.state, rank.options());
  const auto error = thrown([&] {
    session.run([&](StepContext& step) -> StepValues {
      if (world.size() > 1 && world.rank() == 0) return gradient_step(step);
      throw IoError("from " + std::to_string(world.rank()));
    });
  });
  CHECK(error == (world.size() > 1 ? "IoError: rank 1: from 1" : "IoError: from 0"));
}

/// DeadlineExceeded of the program itself is an error like any other, not a lost rank.
inline void check_a_deadline_of_the_program(const Communicator& world) {
  for (int who = 0; who < world.size(); ++who) {
    Rank rank(world);
    MonitoredTrainingSession session(world, rank.state, rank.options());
    const auto error = thrown([&] {
      session.train([&](StepContext& step) {
        if (world.rank() == who && step.number() == 1) throw DeadlineExceeded("my server is slow");
        return gradient_step(step);
      });
    });
    CHECK(contains(error, "my server is slow"));
    CHECK(same_on_all(world, error));
  }
}

// --- ranks that differ ---

/// A text of "rank 0 has A, rank {} has B", for the rank that is odd: when that is the chief, all others are.
inline std::string told_of(std::string text, int odd, int ranks) {
  constexpr std::string_view kChief = ": rank 0 has ";
  constexpr std::string_view kOdd = ", rank {} has ";
  const auto chief = text.find(kChief);
  const auto other = text.find(kOdd);
  if (odd > 0 || other == std::string::npos) {
    const auto at = text.find("{}");
    if (odd > 0) return text.replace(at, 2, std::to_string(odd));
    return text.replace(text.find("rank {}: "), 9, "");
  }
  const std::string others = ranks == 2 ? "rank 1 has " : ranks == 3 ? "ranks 1, 2 have " : "ranks 1-3 have ";
  const std::string of_chief = text.substr(chief + kChief.size(), other - chief - kChief.size());
  return text.substr(0, chief) + std::string(kChief) + text.substr(other + kOdd.size()) + ", " + others +
         of_chief;
}

inline void check_differences_at_start(const Communicator& world) {
  if (world.size() == 1) return;
  struct Difference {
    std::string expected;
    std::function<void(Rank&, MonitoredTrainingSessionOptions&)> make;
  };
  const std::vector<Difference> differences = {
      {"hooks: rank 0 has 'stop_at_step 5', rank {} has 'stop_at_step 6'",
       [](Rank&, auto& options) { options.hooks = {last_step(6)}; }},
      {"hooks: rank 0 has nothing more, rank {} has 'recorder'",
       [](Rank&, auto& options) { options.hooks.push_back(std::make_shared<Recorder>()); }},
      {"options: rank 0 has 'keepsake = none', rank {} has 'keepsake = with a second copy'",
       [](Rank&, auto& options) { options.config.keepsake = std::make_shared<Keepsake>(true); }},
      {"the model or its settings: rank 0 has 'slot velocity', rank {} has 'parameter extra [2]'",
       [](Rank& rank, auto&) { rank.state.parameter("extra", {2}); }},
      {"the model or its settings: rank 0 has nothing more, rank {} has 'seed = 2'",
       [](Rank& rank, auto&) { rank.state.setting("seed", "2"); }},
      {"what a checkpoint holds: rank 0 has '/slots/velocity/w f32 [5]', rank {} has '/model/more i64 [2]'",
       [](Rank& rank, auto&) { rank.state.attach("more", std::span(rank.counters), {2}); }},
      {"options: rank 0 has 'reduction = 0', rank {} has 'reduction = 1'",
       [](Rank&, auto& options) { options.config.reduction = ReductionKind::mpi; }},
      {"options: rank 0 has 'share_parameters = false', rank {} has 'share_parameters = true'",
       [](Rank&, auto& options) { options.config.share_parameters = true; }},
      {"options: rank 0 has 'ranks_per_node = 0', rank {} has 'ranks_per_node = 1'",
       [](Rank&, auto& options) { options.config.ranks_per_node = 1; }},
      {"options: rank 0 has 'micro_batches = 0', rank {} has 'micro_batches = 3'",
       [](Rank&, auto& options) { options.config.micro_batches = 3; }},
      {"options: rank 0 has 'max_recoveries = 10', rank {} has 'max_recoveries = 3'",
       [](Rank&, auto& options) { options.config.max_recoveries = 3; }},
      {"options: rank 0 has nothing more, rank {} has 'version 2'",
       [](Rank&, auto& options) { options.config.identity = "version 2"; }},
      {"UsageError: rank {}: a hook is null", [](Rank&, auto& options) { options.hooks = {nullptr}; }},
      {"UsageError: rank {}: save_checkpoint_steps is -1",
       [](Rank&, auto& options) { options.save_checkpoint_steps = -1; }},
  };
  for (const auto& difference : differences) {
    for (int odd = 0; odd < world.size(); ++odd) {
      Rank rank(world);
      auto options = rank.options();
      options.hooks = {last_step(5)};
      if (world.rank() == odd) difference.make(rank, options);
      const auto error = thrown([&] { MonitoredTrainingSession(world, rank.state, options); });
      const std::string expected = told_of(difference.expected, odd, world.size());
      CAPTURE(error);
      CAPTURE(expected);
      CHECK(contains(error, expected));
      if (!expected.starts_with("UsageError"))
        CHECK(error.starts_with("EnvironmentError: ranks disagree on "));
      CHECK(same_on_all(world, error));
    }
  }
}

inline void check_differences_in_a_step(const Communicator& world) {
  if (world.size() == 1) return;
  for (int odd = 0; odd < world.size(); ++odd) {
    for (const std::string_view kind : {"names", "order", "reduces", "closes", "closes, sums"}) {
      CAPTURE(odd);
      CAPTURE(kind);
      const SharedFolder folder(world);
      Rank rank(world);
      MonitoredTrainingSession session(world, rank.state, rank.options(folder.path));
      const auto error = thrown([&] {
        for (int i = 0; i < 3; ++i) {
          const bool now = i == 2 && world.rank() == odd;
          if (now && kind.starts_with("closes")) {
            session.close();
            return;
          }
          session.run([&](StepContext& step) -> StepValues {
            if (kind == "reduces" && !now) return gradient_step(step);
            if (kind == "closes, sums") {
              std::ranges::fill(step.begin_micro_batch(), 0.0F);
              step.end_micro_batch();
              step.reduce_micro_batches();
              return {};
            }
            if (kind == "order" && now) return {{"b", 1}, {"a", 1}};
            if (kind == "names" && now) return {{"lost", 1}};
            return {{"a", 1}, {"b", 1}};
          });
        }
      });
      CHECK(error.starts_with("EnvironmentError: ranks disagree after step 2"));
      CHECK(same_on_all(world, error));
      if (world.is_chief()) {
        CHECK(folder.saved() == Steps{0});
        CHECK(folder.status().state == "failed");
        CHECK(folder.status().exit_code == 78);
      }
    }
  }
}

// --- NaN, time, signals, wishes ---

// STYLE's example
inline void check_nan_on_one_rank(const Communicator& world) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  for (int bad_rank = 0; bad_rank < world.size(); ++bad_rank) {
    for (const bool fails : {false, true}) {
      for (const bool reduces : {false, true}) {
        CAPTURE(bad_rank);
        const SharedFolder folder(world);
        Rank rank(world);
        auto options = rank.options(folder.path);
        options.hooks = {std::make_shared<NanTensorHook>("loss", fails)};
        MonitoredTrainingSession session(world, rank.state, options);
        const auto error = thrown([&] {
          session.train([&](StepContext& step) {
            const bool now = step.number() == 3 && world.rank() == bad_rank;
            StepValues values{{"loss", now ? kNan : 0.5}};
            if (reduces) {
              std::vector<float> gradients(step.state().parameter_elements());
              step.reduce(gradients, values);
            }
            return values;
          });
        });
        const std::string expected =
            "loss is not finite (nan) at step 4, first on rank " + std::to_string(bad_rank);
        CHECK(session.global_step() == 4);
        CHECK(session.stop_reason().starts_with(expected));
        CHECK(contains(error, fails ? "TrainingError: " + expected : ""));
        CHECK(error.empty() != fails);
        CHECK(same_on_all(world, error));
        // The parameters are finite: a clean stop saves them, a failure saves nothing.
        if (world.is_chief()) CHECK(folder.saved() == (fails ? Steps{0} : Steps{0, 4}));
      }
    }
  }
}

inline void check_skewed_clocks(const Communicator& world) {
  Rank rank(world);
  auto options = rank.options();
  const auto log = std::make_shared<LoggingTensorHook>(
      LoggingTensorHook::Options{.values = {"step"}, .every_n_secs = 3.0});
  class Triggered final : public SessionRunHook {
   public:
    std::string_view name() const override { return "triggered"; }
    void begin(RunContext& context) override {
      for (auto& timer : timers) context.agree_on(timer);
    }
    void after_run(RunContext&, const RunValues& values) override {
      for (std::size_t i = 0; i < timers.size(); ++i) {
        if (!timers[i].should_trigger_for_step(values.global_step())) continue;
        timers[i].update_last_triggered_step(values.global_step());
        said += std::to_string(i) + "@" + std::to_string(values.global_step()) + " ";
      }
    }
    std::vector<SecondOrStepTimer> timers = {{2.0, std::nullopt}, {5.0, 3}, {std::nullopt, 4}};
    std::string said;
  };
  const auto triggered = std::make_shared<Triggered>();
  // A timer of the chief alone takes a bit, and leaves those of the others as they are.
  options.chief_only_hooks = {std::make_shared<Triggered>()};
  options.hooks = {log, triggered, last_step(12)};
  MonitoredTrainingSession session(world, rank.state, options);
  while (!session.should_stop()) {
    rank.clock->advance(Seconds{world.is_chief() ? 0.9 : 3.7 * world.rank()});
    session.run(gradient_step);
  }
  session.close();
  CHECK(triggered->said == "0@1 1@1 2@1 0@4 1@4 2@5 0@7 1@7 2@9 0@10 1@10 ");
  CHECK(same_on_all(world, triggered->said));
  if (world.is_chief()) {
    CHECK(rank.messages->contain("step = 5 (3.600 sec)"));
    CHECK(rank.messages->contain("step = 9 (3.600 sec)"));
  }
}

inline void check_too_many_timers(const Communicator& world) {
  class Many final : public SessionRunHook {
   public:
    std::string_view name() const override { return "many"; }
    void begin(RunContext& context) override {
      for (auto& timer : timers) context.agree_on(timer);
    }
    std::vector<SecondOrStepTimer> timers = std::vector<SecondOrStepTimer>(33, {1.0, std::nullopt});
  };
  Rank rank(world);
  auto options = rank.options();
  options.hooks = {std::make_shared<Many>()};
  options.chief_only_hooks = {std::make_shared<Many>()};
  const auto error = thrown([&] { MonitoredTrainingSession(world, rank.state, options); });
  CHECK(error == "UsageError: more than 64 timers in seconds; use intervals in steps for some");
}

inline void check_signals_and_time_limit(const Communicator& world) {
  for (const auto& step : all_steps()) {
    for (int who = -2; who < world.size(); ++who) {  // -1: the time limit, -2: the end of the allocation
      CAPTURE(who);
      const SharedFolder folder(world);
      Rank rank(world);
      auto options = rank.options(folder.path);
      // Too little for two more steps of 2 s after step 5.
      if (who == -1) options.config.max_run_secs = 13;
      if (who == -2) options.config.end_time = rank.clock->wall_seconds() + (world.is_chief() ? 13 : -1000);
      const auto recorder = std::make_shared<Recorder>([&](std::string_view phase, RunContext& context) {
        // What an end changes is saved as well: the save on the signal was made before.
        if (phase == "end") context.state().parameters()[0] = 42;
      });
      options.hooks = {recorder, last_step(100)};
      MonitoredTrainingSession session(world, rank.state, options);
      while (!session.should_stop()) {
        if (session.global_step() == 4 && world.rank() == who) rank.signals->raise(15);
        rank.clock->advance(Seconds{world.is_chief() ? (who < 0 ? 2.0 : 0.5) : 1000.0});
        session.run(step);
      }
      CHECK(session.stopped_early());
      CHECK(session.global_step() == 5);
      CHECK(session.stop_reason() == (who == -1   ? "the time limit of 13 s"
                                      : who == -2 ? "the time of the allocation"
                                                  : "SIGTERM on rank " + std::to_string(who)));
      session.close();
      CHECK(recorder->count("end") == 1);
      if (world.is_chief()) {
        CHECK(folder.saved() == Steps{0, 5, 5});
        CHECK(folder.status().state == "stopped");
        CHECK(folder.status().exit_code == 75);
      }
      Rank next(world);
      MonitoredTrainingSession again(world, next.state, next.options(folder.path));
      CHECK(again.global_step() == 5);
      CHECK(next.state.parameters()[0] == 42);
      again.close();
      if (world.is_chief()) CHECK(folder.status().restarts == 1);
    }
  }
}

inline void check_an_end_that_changes_the_state(const Communicator& world) {
  for (const bool changes : {false, true}) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.save_checkpoint_steps = 2;  // the last step hits an interval
    options.hooks = {std::make_shared<Recorder>([&](std::string_view phase, RunContext&) {
      if (phase == "end" && changes) rank.counters[1] = 7;
    })};
    MonitoredTrainingSession session(world, rank.state, options);
    for (int i = 0; i < 2; ++i) session.run(gradient_step);
    session.close();
    if (world.is_chief()) CHECK(folder.saved() == (changes ? Steps{0, 2, 2} : Steps{0, 2}));
    Rank next(world);
    MonitoredTrainingSession again(world, next.state, next.options(folder.path));
    CHECK(next.counters[1] == (changes ? 7 : 0));
    again.close();
  }
}

inline void check_save_now(const Communicator& world) {
  for (int who = 0; who < world.size(); ++who) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.hooks = {std::make_shared<Recorder>([&](std::string_view phase, RunContext& context) {
      if (world.rank() == who && phase == "before_run" && context.global_step() == 6) context.save_now();
    })};
    MonitoredTrainingSession session(world, rank.state, options);
    for (int i = 0; i < 9; ++i) {
      if (i == 3 && world.rank() == who) session.save_now();
      session.run(gradient_step);
    }
    session.close();
    if (world.is_chief()) CHECK(folder.saved() == Steps{0, 4, 7, 9});
  }
}

// TF: MonitoredSession.test_with_statement_and_close
inline void check_closing(const Communicator& world) {
  const SharedFolder folder(world);
  Rank rank(world);
  auto options = rank.options(folder.path);
  const auto recorder = std::make_shared<Recorder>();
  options.hooks = {recorder, last_step(2)};
  {
    MonitoredTrainingSession session(world, rank.state, options);
    session.run(gradient_step);
    session.run(gradient_step);
    CHECK(session.should_stop());
    CHECK(contains(thrown([&] { session.run(gradient_step); }), "although should_stop() is true"));
    session.close();
    session.close();
    CHECK(contains(thrown([&] { session.run(gradient_step); }), "run() after close()"));
  }
  CHECK(recorder->calls == std::vector<std::string>{"begin", "after_create_session", "before_run",
                                                    "after_run", "before_run", "after_run", "end"});
  // A destructor closes, too; what it cannot throw it logs.
  Rank next(world);
  auto again = next.options(folder.path);
  again.hooks = {std::make_shared<Recorder>([](std::string_view phase, RunContext&) {
    if (phase == "end") throw DataError("no end");
  })};
  {
    MonitoredTrainingSession session(world, next.state, again);
    session.run(gradient_step);
  }
  if (world.is_chief()) {
    CHECK(next.messages->contain("while closing the session: no end"));
    CHECK(folder.saved() == Steps{0, 2, 3});
    CHECK(!folder.locked());
  }
}

/// Who asked, at which step, for which reason: in the chief's log, whatever it was.
inline void check_why_it_stopped(const Communicator& world) {
  for (int who = 0; who < world.size(); ++who) {
    for (const std::string_view cause :
         {"hook", "program", "signal", "time", "input", "last step", "close", "error"}) {
      CAPTURE(who);
      CAPTURE(cause);
      const bool me = world.rank() == who;
      const std::string on_rank = " on rank " + std::to_string(who);
      Rank rank(world);
      auto options = rank.options();
      if (cause == "time") options.config.max_run_secs = 5;
      options.hooks = {std::make_shared<Recorder>([&](std::string_view phase, RunContext& context) {
        if (me && cause == "hook" && phase == "before_run" && context.global_step() == 2) {
          context.request_stop("enough");
        }
      })};
      if (cause == "last step") options.hooks.push_back(last_step(3));
      MonitoredTrainingSession session(world, rank.state, options);
      static_cast<void>(thrown([&] {
        while (!session.should_stop() && !(cause == "close" && session.global_step() == 3)) {
          if (me && session.global_step() == 2 && cause == "program") session.request_stop("enough");
          if (me && session.global_step() == 2 && cause == "signal") rank.signals->raise(15);
          rank.clock->advance(Seconds{2});
          session.run([&](StepContext& step) {
            if (me && step.number() == 3 && cause == "input") throw EndOfInput();
            if (me && step.number() == 3 && cause == "error") throw DataError("boom");
            return gradient_step(step);
          });
        }
        session.close();
      }));
      const std::string expected = cause == "hook"      ? "enough|(asked by recorder" + on_rank + ")"
                                   : cause == "program" ? "enough|(asked by the program" + on_rank + ")"
                                   : cause == "signal"  ? "SIGTERM" + on_rank + " (asked by a signal"
                                   : cause == "time"    ? "the time limit of 5 s|on rank 0)"
                                   : cause == "input"
                                       ? "end of input" + on_rank + " (asked by the step" + on_rank + ")"
                                   : cause == "last step" ? "reached step 3 (asked by stop_at_step)"
                                                          : "closed by the program (asked by the program)";
      const std::int64_t stopped = session.global_step();
      if (cause != "time") CHECK(stopped == 3);
      CHECK(session.stop_cause().step == stopped);
      if (!world.is_chief()) continue;
      if (cause == "error") {
        CHECK(rank.messages->contain("rank " + std::to_string(who) + " failed at step 3 in the step: boom"));
        continue;
      }
      const auto cut = expected.find('|');
      const auto said = std::ranges::count_if(rank.messages->lines, [&](const std::string& line) {
        return line.starts_with("stopped after step " + std::to_string(stopped) + ": " +
                                expected.substr(0, cut)) &&
               (cut == std::string::npos || contains(line, expected.substr(cut + 1)));
      });
      CHECK(said == 1);
    }
  }
}

// TF: MonitoredSession.test_raises_regular_exceptions_in_with_body
inline void check_an_exception_between_steps(const Communicator& world) {
  const SharedFolder folder(world);
  Rank rank(world);
  const auto error = thrown([&] {
    MonitoredTrainingSession session(world, rank.state, rank.options(folder.path));
    session.run(gradient_step);
    throw DataError("between");
  });
  CHECK(error == "DataError: between");
  if (world.is_chief()) {
    CHECK(folder.saved() == Steps{0});
    CHECK(folder.status().state == "failed");
    CHECK(!folder.locked());
    CHECK(rank.messages->contain("an exception left the program after step 1"));
  }
}

inline void check_second_session_in_one_directory(const Communicator& world) {
  const SharedFolder folder(world);
  Rank rank(world);
  MonitoredTrainingSession session(world, rank.state, rank.options(folder.path));
  Rank other(world);
  const auto error =
      thrown([&] { MonitoredTrainingSession(world, other.state, other.options(folder.path)); });
  CHECK(error.starts_with("EnvironmentError: "));
  CHECK(same_on_all(world, error));
  session.run(gradient_step);
  session.close();
  if (world.is_chief()) {
    CHECK(folder.saved() == Steps{0, 1});
    CHECK(folder.status().state == "done");
  }
}

inline void check_misuse(const Communicator& world) {
  const auto refused = [&](auto change) {
    Rank rank(world);
    auto options = rank.options();
    change(rank, options);
    return thrown([&] { MonitoredTrainingSession(world, rank.state, options); });
  };
  CHECK(contains(refused([](Rank&, auto& o) { o.save_checkpoint_secs = -1; }),
                 "UsageError: save_checkpoint_secs is -1"));
  CHECK(contains(refused([](Rank&, auto& o) { o.save_summaries_steps = -1; }),
                 "UsageError: save_summaries_steps"));
  CHECK(contains(refused([](Rank&, auto& o) { o.log_step_count_steps = -1; }),
                 "UsageError: log_step_count_steps"));
  CHECK(contains(refused([](Rank&, auto& o) { o.max_wait_secs = -1; }), "UsageError: max_wait_secs"));
  CHECK(contains(refused([](Rank&, auto& o) { o.config.max_run_secs = -1; }), "UsageError: max_run_secs"));
  CHECK(contains(refused([](Rank&, auto& o) { o.config.micro_batches = -1; }), "UsageError: "));
  CHECK(contains(refused([](Rank& rank, auto& o) {
                   PlainAllocator allocator;
                   rank.state.freeze(allocator);
                   o.config.share_parameters = true;
                 }),
                 "UsageError: share_parameters needs a state that the session freezes"));
  // In a step: an error on all, even where one rank alone makes the mistake.
  for (int who = 0; who < world.size(); ++who) {
    const auto fails = [&](const MonitoredTrainingSession::Step& mistake) {
      Rank rank(world);
      MonitoredTrainingSession session(world, rank.state, rank.options());
      const auto error = thrown([&] {
        session.train([&](StepContext& step) {
          return world.rank() == who && step.number() == 1 ? mistake(step) : gradient_step(step);
        });
      });
      CHECK(same_on_all(world, error));
      return error;
    };
    CHECK(contains(fails([](StepContext& step) {
                     gradient_step(step);
                     return gradient_step(step);
                   }),
                   "a step reduces twice"));
    CHECK(contains(fails([](StepContext& step) {
                     step.reduce(std::vector<float>(3));
                     return StepValues();
                   }),
                   "reduce() got 3 gradients"));
    CHECK(contains(fails([](StepContext& step) {
                     step.reduce_micro_batches();
                     return StepValues();
                   }),
                   "reduces after 0 micro-batches (1 are this rank's)"));
  }
}

// --- the same results, however ranks sit and share ---

/// Steps with micro-batches of numbers that add up to other bits in another order.
inline std::vector<float> trained(const Communicator& world, ReductionKind kind, bool shared, int per_node,
                                  std::int64_t elements) {
  Rank rank(world, elements);
  auto options = rank.options();
  options.config.reduction = kind;
  options.config.share_parameters = shared;
  options.config.ranks_per_node = per_node;
  options.config.micro_batches = 12;
  options.hooks = {last_step(4)};
  MonitoredTrainingSession session(world, rank.state, options);
  CHECK(session.topology().nodes == (per_node == 0 ? 1 : (world.size() + per_node - 1) / per_node));
  const auto n = static_cast<std::size_t>(elements);
  session.train([&](StepContext& step) -> StepValues {
    const auto range = step.micro_batches();
    for (auto m = range.first; m < range.last; ++m) {
      const auto gradient = step.begin_micro_batch();
      for (std::size_t i = 0; i < n; ++i) {
        gradient[i] = 1.0F / static_cast<float>(
                                 1 + (m * 7919 + static_cast<std::int64_t>(i) * 31 + step.number()) % 97);
      }
      for (std::size_t i = n; i < step.state().parameter_elements(); ++i) gradient[i] = 0;
      step.end_micro_batch();
    }
    step.reduce_micro_batches();
    const auto slice = step.slice();
    if (!step.shares_parameters()) step.finish();
    for (std::size_t i = slice.first; i < slice.last; ++i) {
      step.state().parameters()[i] -= 0.01F * step.sum()[i] * step.state().parameters()[i];
    }
    step.finish();
    return {};
  });
  const auto parameters = rank.state.parameters().first(n);
  std::vector<float> result(parameters.begin(), parameters.end());
  world.barrier("all to have looked");
  return result;
}

inline void check_same_results(const Communicator& world) {
  for (const std::int64_t elements : {std::int64_t{7}, std::int64_t{9000}}) {
    const auto expected = trained(Communicator::self(), ReductionKind::canonical, false, 0, elements);
    for (const bool shared : {false, true}) {
      for (const int per_node : {0, 1, 2}) {
        CAPTURE(shared);
        CAPTURE(per_node);
        CHECK(trained(world, ReductionKind::canonical, shared, per_node, elements) == expected);
        const auto by_mpi = trained(world, ReductionKind::mpi, shared, per_node, elements);
        bool close = true;
        for (std::size_t i = 0; i < expected.size(); ++i) {
          close = close && std::abs(by_mpi[i] - expected[i]) < 1e-5F;
        }
        CHECK(close);
      }
    }
  }
}

// Only the session: no parameters at all, memory of the user's own.
inline void check_session_only(const Communicator& world) {
  const SharedFolder folder(world);
  for (int launch = 0; launch < 2; ++launch) {
    std::vector<double> positions(100, 1.0);
    State state;
    state.attach("positions", std::span(positions), {100});
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.scaffold.init_fn = nullptr;
    const auto recorder = std::make_shared<Recorder>();
    options.hooks = {recorder, std::make_shared<StopAtStepHook>(3)};
    MonitoredTrainingSession session(world, state, options);
    CHECK(positions[99] == (launch == 0 ? 1.0 : 4.0));
    session.train([&](StepContext& step) -> StepValues {
      for (double& x : positions) x += 1;
      return {{"loss", 1.0 + step.rank()}};
    });
    CHECK(positions[99] == (launch == 0 ? 4.0 : 7.0));
    CHECK(session.global_step() == (launch == 0 ? 3 : 6));
    CHECK(recorder->losses == std::vector<double>(3, 1.0 + mean_rank(world)));
  }
}

}  // namespace lockstep::test
