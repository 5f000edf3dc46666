#include <limits>
#include <type_traits>

#include <lockstep/session/scaffold.hpp>

#include "mpi_ranks.hpp"
#include "session_support.hpp"

namespace lockstep {
namespace {

using test::contains;
using test::on_all_ranks;
using test::Rank;
using test::same_on_all;
using test::SharedFolder;
using test::Steps;
using test::thrown;
using Names = Scaffold::Names;

constexpr float kMissing = std::numeric_limits<float>::quiet_NaN();

/// A scaffold whose functions write down in `said` who was called, with `who` in front.
Scaffold talking(const std::string& who, std::string& said) {
  const auto say = [&said, who](const char* what) { said += who + what + " "; };
  return {.init = [say](State&) { say("init"); },
          .init_fn = [say](State&) { say("init_fn"); },
          .ready_for_local_init =
              [say](const State&) {
                say("ready_for_local_init");
                return Names{};
              },
          .local_init = [say](State&) { say("local_init"); },
          .ready =
              [say](const State&) {
                say("ready");
                return Names{};
              },
          .summary = [say](SummaryWriter&, const State&, std::int64_t) { say("summary"); },
          .saver = {.max_to_keep = 2, .basename = who}};
}

/// Calls all functions as a session does.
void call_all(const Scaffold& scaffold, State& state) {
  SummaryWriter nowhere;
  scaffold.init(state);
  scaffold.init_fn(state);
  scaffold.ready_for_local_init(state);
  scaffold.local_init(state);
  scaffold.ready(state);
  scaffold.summary(nowhere, state, 1);
}

std::string all_by(const std::string& who) {
  std::string said;
  State state;
  call_all(talking(who, said), state);
  return said;
}

}  // namespace

// TF: Scaffold.test_nothing_created_before_finalize
TEST_CASE("before finalize a scaffold holds what was passed and nothing else") {
  const Scaffold none;
  CHECK(!none.init);
  CHECK(!none.init_fn);
  CHECK(!none.ready_for_local_init);
  CHECK(!none.local_init);
  CHECK(!none.ready);
  CHECK(!none.summary);
  CHECK(none.saver.max_to_keep == 5);
  CHECK(!none.finalized());
  const Scaffold one{.local_init = [](State&) {}};
  CHECK(one.local_init);
  CHECK(!one.init);
  CHECK(!one.finalized());
}

// TF: Scaffold.test_defaults_empty_graph
TEST_CASE("finalize fills in the rest; what has no values yet is named, parameters before local_init") {
  State state;
  const Tensor weight = state.parameter("weight", {2});
  const Tensor mean = state.buffer("mean", {3});
  PlainAllocator allocator;
  state.freeze(allocator);
  Scaffold scaffold;
  CHECK(&scaffold.finalize() == &scaffold);
  CHECK(scaffold.finalized());
  CHECK(scaffold.ready_for_local_init(state).empty());
  CHECK(scaffold.ready(state).empty());
  weight.values()[1] = kMissing;
  mean.values()[0] = std::numeric_limits<float>::infinity();
  CHECK(scaffold.ready_for_local_init(state) == Names{"weight"});
  CHECK(scaffold.ready(state) == Names{"weight", "mean"});
  weight.values()[1] = 1;
  CHECK(scaffold.ready_for_local_init(state).empty());
  CHECK(scaffold.ready(state) == Names{"mean"});
  mean.values()[0] = 0;
  CHECK(scaffold.ready(state).empty());
  call_all(scaffold, state);
  CHECK(weight.values()[1] == 1);
}

// TF: Scaffold.test_defaults_empty_graph
TEST_CASE(
    "a session goes on once the functions have made the model ready, and else says on all what is missing") {
  on_all_ranks([](const Communicator& world) {
    for (const std::string_view made : {"", "weight", "mean", "weight mean"}) {
      CAPTURE(made);
      State state;
      const Tensor weight = state.parameter("weight", {2});
      const Tensor mean = state.buffer("mean", {3});
      MonitoredTrainingSessionOptions options;
      options.config.executor = std::make_shared<InlineExecutor>();
      options.scaffold.init = [&](State&) {
        weight.values()[1] = kMissing;
        mean.values()[2] = kMissing;
      };
      if (contains(std::string(made), "weight")) {
        options.scaffold.init_fn = [&](State&) { weight.values()[1] = 1; };
      }
      if (contains(std::string(made), "mean")) {
        options.scaffold.local_init = [&](State&) { mean.values()[2] = 1; };
      }
      const auto error = thrown([&] { MonitoredTrainingSession(world, state, options).close(); });
      const std::string expected =
          made == "weight mean" ? ""
          : made == "weight"    ? "TrainingError: the functions of the scaffold did not make the model "
                                  "ready: mean; let init or init_fn set them"
                                : "TrainingError: the functions of the scaffold did not make the model "
                                  "ready for local_init: weight; let init or init_fn set them";
      CHECK(error.starts_with(expected));
      CHECK(error.empty() == expected.empty());
      CHECK(same_on_all(world, error));
    }
  });
}

// TF: Scaffold.test_defaults_no_variables
TEST_CASE("a state without parameters needs nothing, and a session of it runs") {
  State empty;
  PlainAllocator allocator;
  empty.freeze(allocator);
  Scaffold scaffold;
  scaffold.finalize();
  CHECK(scaffold.ready_for_local_init(empty).empty());
  CHECK(scaffold.ready(empty).empty());
  call_all(scaffold, empty);
  on_all_ranks([](const Communicator& world) {
    State state;
    MonitoredTrainingSession session(world, state);
    session.run(test::plain_step);
    CHECK(session.global_step() == 1);
    session.close();
  });
}

// TF: Scaffold.test_uses_passed_values
TEST_CASE("finalize leaves what was passed, once and again") {
  std::string said;
  State state;
  Scaffold scaffold = talking("my_", said);
  CHECK(scaffold.finalized());
  scaffold.finalize().finalize();
  call_all(scaffold, state);
  CHECK(said == all_by("my_"));
  CHECK(scaffold.saver.basename == "my_");
}

// TF: Scaffold.test_uses_passed_values
TEST_CASE("a session calls what was passed: first values on the chief and only there, the rest everywhere") {
  on_all_ranks([](const Communicator& world) {
    const SharedFolder folder(world);
    for (const bool again : {false, true}) {
      CAPTURE(again);
      std::string said;
      Rank rank(world);
      auto options = rank.options(folder.path);
      options.scaffold = talking("ours", said);
      options.save_summaries_steps = 1;
      options.log_step_count_steps = 0;
      MonitoredTrainingSession session(world, rank.state, options);
      // Memory of the user's, which is no parameter, comes back too; nothing was restored the first time.
      CHECK(session.restored_from() == (again ? "ours-00000002.h5" : ""));
      CHECK(said == std::string(world.is_chief() && !again ? "oursinit oursinit_fn " : "") +
                        "oursready_for_local_init ourslocal_init oursready ");
      said.clear();
      for (int i = 0; i < 2; ++i) session.run(test::gradient_step);
      session.close();
      CHECK(said == (world.is_chief() ? "ourssummary ourssummary " : ""));
      if (world.is_chief()) {
        Steps saved;
        for (const auto& entry : PosixFileSystem().open_directory(folder.path)->list()) {
          if (const auto name = parse_file_name("ours", entry.name)) saved.push_back(name->step);
        }
        std::ranges::sort(saved);
        CHECK(saved == (again ? Steps{2, 4} : Steps{0, 2}));  // max_to_keep is 2
      }
    }
  });
}

// TF: Scaffold.test_graph_is_finalized
TEST_CASE("once a session has been created nothing can be declared any more, on any rank") {
  on_all_ranks([](const Communicator& world) {
    Rank rank(world);
    auto options = rank.options();
    bool open = false;
    class Declares final : public SessionRunHook {
     public:
      explicit Declares(bool& done) : done_(done) {}
      std::string_view name() const override { return "declares"; }
      void begin(RunContext& context) override {
        context.state().buffer("of_a_hook", {1});
        done_ = true;
      }

     private:
      bool& done_;
    };
    options.hooks = {std::make_shared<Declares>(open)};
    MonitoredTrainingSession session(world, rank.state, options);
    CHECK(open);
    CHECK(rank.state.frozen());
    std::vector<double> more(1);
    CHECK(thrown([&] { rank.state.parameter("late", {1}); }).starts_with("UsageError: "));
    CHECK(thrown([&] { rank.state.buffer("late", {1}); }).starts_with("UsageError: "));
    CHECK(thrown([&] { rank.state.slot("late"); }).starts_with("UsageError: "));
    CHECK(thrown([&] { rank.state.attach("late", std::span(more), {1}); }).starts_with("UsageError: "));
    CHECK(thrown([&] { rank.state.setting("late", "1"); }).starts_with("UsageError: "));
    session.run(test::gradient_step);
    session.close();
  });
}

// TF: Scaffold.test_new_scaffold_from_default_scaffold
TEST_CASE("a copy of a scaffold that says nothing takes what it is given, and leaves the first as it was") {
  std::string said;
  State state;
  const Scaffold first;
  Scaffold second = first;
  CHECK(!second.finalized());
  const Scaffold given = talking("b_", said);
  second.init = given.init;
  second.init_fn = given.init_fn;
  second.ready_for_local_init = given.ready_for_local_init;
  second.local_init = given.local_init;
  second.ready = given.ready;
  second.summary = given.summary;
  second.saver = given.saver;
  second.finalize();
  call_all(second, state);
  CHECK(said == all_by("b_"));
  CHECK(second.saver.basename == "b_");
  CHECK(!first.init);
  CHECK(!first.finalized());
}

// TF: Scaffold.test_new_scaffold_from_existing_scaffold
TEST_CASE(
    "a copy has the fields of the first but for those that it is given; its init_fn sees its own state") {
  on_all_ranks([](const Communicator& world) {
    std::string said;
    Rank first(world);
    Rank second(world);
    auto options = first.options();
    options.scaffold = talking("a_", said);
    options.scaffold.init_fn = [](State& state) { state.parameters()[0] = 5; };
    auto copied = second.options();
    copied.scaffold = options.scaffold;
    copied.scaffold.local_init = talking("b_", said).local_init;
    copied.scaffold.saver.max_to_keep = 7;
    MonitoredTrainingSession(world, second.state, copied).close();
    CHECK(said ==
          std::string(world.is_chief() ? "a_init " : "") + "a_ready_for_local_init b_local_init a_ready ");
    CHECK(second.state.parameters()[0] == 5);
    said.clear();
    MonitoredTrainingSession(world, first.state, options).close();
    CHECK(said ==
          std::string(world.is_chief() ? "a_init " : "") + "a_ready_for_local_init a_local_init a_ready ");
    CHECK(options.scaffold.saver.max_to_keep == 2);
    CHECK(copied.scaffold.saver.basename == "a_");
  });
}

// TF: Scaffold.test_copy_from_scaffold_is_scaffold
// The compiler refuses it.
static_assert(std::is_copy_constructible_v<Scaffold> && std::is_copy_assignable_v<Scaffold>);
static_assert(!std::is_assignable_v<Scaffold&, MonitoredTrainingSessionOptions>);
static_assert(!std::is_assignable_v<Scaffold&, const char*>);
static_assert(!std::is_constructible_v<Scaffold, SessionConfig>);

}  // namespace lockstep
