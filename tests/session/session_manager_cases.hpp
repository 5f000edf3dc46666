#pragma once

#include <limits>

#include <lockstep/session/session_creator.hpp>

#include "session_support.hpp"

// How a session begins: what the original's SessionManager does for chief and workers. Over simulated ranks
// and over real MPI ranks; checks never leave early.

namespace lockstep {

/// Runs a case on the ranks of this program. Defined by the program.
void everywhere(void (*check)(const Communicator&));

namespace test {

inline constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

inline void fill(State& state, float value) {
  std::ranges::fill(state.parameters().first(5), value);
}

inline bool holds(const State& state, float value) {
  return std::ranges::all_of(state.parameters().first(5), [&](float v) { return v == value; });
}

inline SessionCreatorOptions creator_options(const Rank& rank, const std::filesystem::path& folder = {}) {
  const auto options = rank.options(folder);
  return {.checkpoint_dir = folder, .scaffold = {}, .max_wait_secs = 60, .config = options.config};
}

/// What the creation throws on this rank, the same on all or an error of the test.
inline std::string refused(const Communicator& world, Rank& rank, const SessionCreatorOptions& options) {
  auto creator = make_session_creator(world, rank.state, options);
  const auto error = thrown([&] { SingularMonitoredSession session(std::move(creator)); });
  CHECK(same_on_all(world, error));
  return error;
}

/// "rank 2: ", as other ranks than the chief are named.
inline std::string by(int rank) {
  return rank == 0 ? "" : "rank " + std::to_string(rank) + ": ";
}

/// Leaves a checkpoint of step 2, in which all parameters are 0.5.
inline void save_two_steps(const Communicator& world, const std::filesystem::path& folder) {
  Rank rank(world);
  MonitoredTrainingSession session(world, rank.state, rank.options(folder));
  for (int i = 0; i < 2; ++i) session.run(gradient_step);
  session.close();
}

// TF: SessionManager.testPrepareSessionSucceeds
// TF: SessionManager.testPrepareSessionSucceedsWithInitFeedDict
// TF: SessionManager.testPrepareSessionSucceedsWithInitFn
inline void check_the_chief_initializes(const Communicator& world) {
  for (const bool by_function : {false, true}) {
    Rank rank(world);
    auto options = creator_options(rank);
    int calls = 0;
    // What the original feeds, a function holds; only the chief's counts.
    const auto initialize = [&, value = world.is_chief() ? 3.0F : -1.0F](State& state) {
      ++calls;
      fill(state, value);
    };
    (by_function ? options.scaffold.init_fn : options.scaffold.init) = initialize;
    const auto creator = make_session_creator(world, rank.state, options);
    const auto session = creator->create_session();
    CHECK(calls == (world.is_chief() ? 1 : 0));
    CHECK(holds(rank.state, 3));
    CHECK(session->global_step() == 0);
    const auto values = session->run([](StepContext& step) { return gradient_step(step); });
    CHECK(values.find("loss") == mean_rank(world));
  }
  // Both: the function of the user comes after.
  Rank rank(world);
  auto options = creator_options(rank);
  options.scaffold.init = [](State& state) { fill(state, 3); };
  options.scaffold.init_fn = [](State& state) { state.parameters()[1] += 1; };
  make_session_creator(world, rank.state, options)->create_session();
  CHECK(rank.state.parameters()[0] == 3);
  CHECK(rank.state.parameters()[1] == 4);
}

// TF: SessionManager.testPrepareSessionFails
inline void check_a_checkpoint_that_must_be_there(const Communicator& world) {
  const SharedFolder folder(world);
  save_two_steps(world, folder.path / "run");
  const auto restored = [&] {
    Rank rank(world);
    auto options = creator_options(rank, folder.path / "run");
    options.config.restore_from = "ckpt-00000002.h5";
    auto error = refused(world, rank, options);
    if (error.empty()) CHECK(holds(rank.state, 0.5F));
    return error;
  };
  const auto move = [&](const char* from, const char* to) {
    world.barrier("all to have tried");
    if (world.is_chief()) {
      std::filesystem::remove_all(folder.path / to);
      std::filesystem::rename(folder.path / from, folder.path / to);
    }
    world.barrier("the chief to move the directory");
  };
  move("run", "away");
  const auto error = restored();
  CHECK(error.starts_with("DataError: "));
  CHECK(contains(error, "ckpt-00000002.h5"));
  move("away", "run");
  CHECK(restored() == "");
}

// TF: SessionManager.testRecoverSession
inline void check_recovery_of_a_session(const Communicator& world) {
  const SharedFolder folder(world);
  const auto step_and_value = [&](const std::string& file) {
    Rank rank(world);
    auto options = creator_options(rank, folder.path);
    options.scaffold.init_fn = [](State& state) { fill(state, 1); };
    options.config.restore_from = file;
    SingularMonitoredSession session(make_session_creator(world, rank.state, options));
    CHECK(session.restored_from() == (session.global_step() == 0 ? "" : "ckpt-00000002.h5"));
    return std::pair(session.global_step(), rank.state.parameters()[4]);
  };
  CHECK(step_and_value("") == std::pair<std::int64_t, float>(0, 1.0F));
  save_two_steps(world, folder.path);
  CHECK(step_and_value("") == std::pair<std::int64_t, float>(2, 0.5F));
  CHECK(step_and_value("ckpt-00000002.h5") == std::pair<std::int64_t, float>(2, 0.5F));
  // Two answers to one question: what to begin with.
  const auto fails = [&](auto change) {
    Rank rank(world);
    auto options = creator_options(rank, folder.path);
    change(options);
    return refused(world, rank, options);
  };
  CHECK(contains(fails([](auto& options) {
                   options.config.restore_from = "ckpt-00000002.h5";
                   options.config.fresh = true;
                 }),
                 "UsageError: fresh and restore_from are both given"));
  CHECK(contains(fails([](auto& options) {
                   options.config.restore_from = "ckpt-00000002.h5";
                   options.checkpoint_dir.clear();
                 }),
                 "UsageError: fresh and restore_from speak of checkpoints; give checkpoint_dir too"));
  CHECK(contains(fails([&](auto& options) {
                   options.config.restore_from = (folder.path / "ckpt-00000002.h5").string();
                 }),
                 "is not the name of a file in the checkpoint directory"));
}

// TF: SessionManager.testInitWithNoneLocalInitOpError
inline void check_readiness_without_local_init(const Communicator& world) {
  for (int who = 0; who < world.size(); ++who) {
    Rank rank(world);
    auto options = creator_options(rank);
    if (world.rank() == who)
      options.scaffold.ready_for_local_init = [](const State&) { return Scaffold::Names(); };
    CHECK(refused(world, rank, options) ==
          "UsageError: " + by(who) +
              "the scaffold has ready_for_local_init and no local_init that it is for; give both");
  }
}

// TF: SessionManager.testRecoverSessionWithReadyForLocalInitOp
// TF: SessionManager.testRecoverSessionNoChkptStillRunsLocalInitOp
// TF: SessionManager.testRecoverSessionFailsStillRunsLocalInitOp
// TF: SessionManager.testWaitForSessionLocalInit
// TF: SessionManager.testPrepareSessionWithReadyForLocalInitOp
// TF: SessionManager.local_init_feed_dict
inline void check_the_order_of_a_start(const Communicator& world) {
  const SharedFolder folder(world);
  for (const std::string_view from : {"no directory", "an empty directory", "a checkpoint"}) {
    CAPTURE(from);
    const bool restores = from == "a checkpoint";
    if (restores) save_two_steps(world, folder.path);
    Rank rank(world);
    auto options = creator_options(rank, from == "no directory" ? std::filesystem::path() : folder.path);
    std::string calls;
    float cache = 0;
    const float value = restores ? 0.5F : 3.0F;
    options.scaffold.init = [&](State& state) {
      calls += "init ";
      fill(state, 3);
    };
    options.scaffold.init_fn = [&](State&) { calls += "init_fn "; };
    options.scaffold.ready_for_local_init = [&](const State& state) {
      calls += "ready_for_local_init ";
      CHECK(holds(state, value));
      return Scaffold::Names();
    };
    // On every rank, from values that all have by now and from what it was given.
    options.scaffold.local_init = [&, given = 100.0F * static_cast<float>(world.rank())](State& state) {
      calls += "local_init ";
      cache = given + state.parameters()[4];
    };
    options.scaffold.ready = [&](const State&) {
      calls += "ready";
      CHECK(cache == 100.0F * static_cast<float>(world.rank()) + value);
      return Scaffold::Names();
    };
    const SingularMonitoredSession session(make_session_creator(world, rank.state, options));
    CHECK(session.global_step() == (restores ? 2 : 0));
    CHECK(calls == (world.is_chief() && !restores ? "init init_fn " : "") +
                       std::string("ready_for_local_init local_init ready"));
  }
}

// TF: SessionManager.testPrepareSessionWithReadyNotReadyForLocal
// TF: SessionManager.testPrepareSessionDidNotInitLocalVariable
// TF: SessionManager.testRecoverSessionWithReadyForLocalInitOpFailsToReadyLocal
// TF: SessionManager.testWaitForSessionWithReadyForLocalInitOpFailsToReadyLocal
inline void check_what_is_not_ready(const Communicator& world) {
  const SharedFolder folder(world);
  save_two_steps(world, folder.path);
  for (const bool restores : {false, true}) {
    for (const bool for_local_init : {true, false}) {
      for (int who = 0; who < world.size(); ++who) {
        CAPTURE(restores);
        CAPTURE(for_local_init);
        CAPTURE(who);
        Rank rank(world);
        auto options = creator_options(rank, restores ? folder.path : std::filesystem::path());
        bool ran = false;
        options.scaffold.ready_for_local_init = [&](const State&) {
          return for_local_init && world.rank() == who ? Scaffold::Names{"w", "v"} : Scaffold::Names();
        };
        options.scaffold.local_init = [&](State&) { ran = true; };
        options.scaffold.ready = [&](const State&) {
          return world.rank() == who ? Scaffold::Names{"cache"} : Scaffold::Names();
        };
        // Nobody waits: a second look would see the same.
        CHECK(refused(world, rank, options) ==
              "TrainingError: " + by(who) + "the functions of the scaffold did not make the model ready" +
                  (for_local_init ? " for local_init: w, v" : ": cache") +
                  "; let init or init_fn set them, or restore a checkpoint that has them");
        CHECK(ran == !for_local_init);
      }
    }
  }
}

// TF: SessionManager.testWaitForSessionInsufficientReadyForLocalInitCheck
// TF: SessionManager.testPrepareSessionWithInsufficientReadyForLocalInitCheck
inline void check_a_test_that_lets_too_much_through(const Communicator& world) {
  // Where local_init itself finds what the test should have found, and where only `ready` does.
  for (const bool notices : {true, false}) {
    for (int who = 0; who < world.size(); ++who) {
      Rank rank(world);
      auto options = creator_options(rank);
      options.scaffold.init = [](State& state) { fill(state, kNone); };
      options.scaffold.ready_for_local_init = [](const State&) { return Scaffold::Names(); };
      options.scaffold.local_init = [&](State& state) {
        if (notices && world.rank() == who && !holds(state, 1)) throw std::runtime_error("w has no values");
      };
      auto creator = make_session_creator(world, rank.state, options);
      const auto error = thrown([&] { SingularMonitoredSession session(std::move(creator)); });
      if (!notices) {
        CHECK(contains(error, "did not make the model ready: w; let init"));
      } else if (world.rank() == who) {
        CHECK(error == "runtime_error: w has no values");
      } else {
        CHECK(error == "TrainingError: " + by(who) + "w has no values");
      }
    }
  }
}

TEST_CASE("the chief's first values, by either function, reach all ranks") {
  everywhere(check_the_chief_initializes);
}

TEST_CASE("a checkpoint that must be there and is not is an error; brought back it is restored") {
  everywhere(check_a_checkpoint_that_must_be_there);
}

TEST_CASE("a session goes on from nothing, from the newest checkpoint or from one by name") {
  everywhere(check_recovery_of_a_session);
}

TEST_CASE("a test of readiness for local_init without local_init is refused, whichever rank has it") {
  everywhere(check_readiness_without_local_init);
}

TEST_CASE("every rank's local_init and tests run in order, after a restore too") {
  everywhere(check_the_order_of_a_start);
}

TEST_CASE("what is not ready on one rank, whichever it is, is named by all at once") {
  everywhere(check_what_is_not_ready);
}

TEST_CASE("a test that lets too much through is an error, not a wait") {
  everywhere(check_a_test_that_lets_too_much_through);
}

}  // namespace test
}  // namespace lockstep
