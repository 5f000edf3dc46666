#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/step_counter.hpp>
#include <lockstep/hooks/summary_saver.hpp>

#include "fake_context.hpp"
#include "summary_support.hpp"

namespace lockstep {
namespace {

using Steps = std::vector<std::int64_t>;

/// Runs a hook for some steps of `seconds` each and returns what it wrote.
template <class Hook>
std::vector<test::Event> written(Hook& hook, int runs, double seconds, std::int64_t steps_per_run = 1) {
  const test::Folder folder;
  test::FakeContext context;
  context.writer = SummaryWriter(
      std::make_unique<EventWriter>(PosixFileSystem().open_directory(folder.path), *context.time, "here"),
      context.log());
  hook.begin(context);
  hook.after_create_session(context);
  for (int i = 0; i < runs; ++i) {
    context.time->advance(Seconds{seconds});
    context.model.set_global_step(context.global_step() + steps_per_run - 1);
    context.step(hook, {{"loss", 0.5}, {"accuracy", 0.25}});
  }
  hook.end(context);
  context.writer.flush();
  return test::events_in(folder.path);
}

}  // namespace

// TF: StepCounterHook.test_step_counter_every_n_steps
TEST_CASE("30 steps with N = 10 give global_step/sec at 11 and 21") {
  StepCounterHook hook(10);
  const auto events = written(hook, 30, 0.25);
  CHECK(test::steps_of(events, "global_step/sec") == Steps{11, 21});
  for (const auto& event : events) {
    if (event.tag == "global_step/sec") CHECK(event.value == doctest::Approx(4.0));
  }
}

// TF: StepCounterHook.test_step_counter_every_n_secs
TEST_CASE("seconds give global_step/sec at the second trigger and later ones") {
  StepCounterHook hook(std::nullopt, 0.1);
  CHECK(test::steps_of(written(hook, 3, 0.2), "global_step/sec") == Steps{2, 3});
}

// TF: StepCounterHook.test_steps_per_run_less_than_every_n_steps
// TF: StepCounterHook.test_steps_per_run_equal_every_n_steps
// TF: StepCounterHook.test_steps_per_run_greater_than_every_n_steps
TEST_CASE("runs of several steps: the rate is of steps, at the first run that passes the interval") {
  const auto counted = [](std::int64_t every, std::int64_t steps_per_run) {
    StepCounterHook hook(every);
    const auto events = written(hook, 5, 0.5, steps_per_run);
    for (const auto& event : events) {
      if (event.tag != "global_step/sec") continue;
      CHECK(event.value == doctest::Approx(2.0 * static_cast<double>(steps_per_run)));
    }
    return test::steps_of(events, "global_step/sec");
  };
  CHECK(counted(10, 5) == Steps{15, 25});
  CHECK(counted(5, 5) == Steps{10, 15, 20, 25});
  CHECK(counted(5, 10) == Steps{20, 30, 40, 50});
}

// TF: StepCounterHook.test_global_step_name
TEST_CASE("the rate has one tag: a state has one global step, and its name is fixed") {
  StepCounterHook hook(1);
  const auto events = written(hook, 3, 1.0);
  CHECK(test::steps_of(events, "global_step/sec") == Steps{2, 3});
  for (const auto& event : events) {
    if (event.tag != "arrival_lag/sec") CHECK(event.tag == "global_step/sec");
  }
}

// TF: StepCounterHook.test_log_warning_if_global_step_not_increased
TEST_CASE("a step that stands still is warned of, five times at most") {
  test::FakeContext context;
  StepCounterHook hook(100);
  hook.begin(context);
  const auto stands_still = [&] { hook.after_run(context, RunValues({}, Tally(), context.global_step())); };
  context.step(hook);
  context.step(hook);
  CHECK(context.messages->lines.empty());
  for (int i = 0; i < 3; ++i) stands_still();
  CHECK(context.messages->lines.size() == 3);
  CHECK(context.messages->lines.front() ==
        "the global step did not move (2): intervals in steps do not come, and nothing new is saved");
  context.step(hook);
  CHECK(context.messages->lines.size() == 3);
  for (int i = 0; i < 7; ++i) stands_still();
  CHECK(context.messages->lines.size() == 5);
}

// TF: SummarySaverHook.test_raise_in_both_secs_and_steps
// Here either one fires.
TEST_CASE("summaries by steps and by seconds, whichever comes first") {
  SummarySaverHook hook(4, 2.5);
  CHECK(test::steps_of(written(hook, 12, 0.5), "loss") == Steps{1, 5, 9});
  SummarySaverHook faster(4, 1.0);
  CHECK(test::steps_of(written(faster, 6, 0.5), "loss") == Steps{1, 3, 5});
}

// TF: SummarySaverHook.test_raise_in_none_secs_and_steps
TEST_CASE("a counter and a summary need an interval above 0") {
  CHECK_THROWS_AS(StepCounterHook{std::nullopt}, UsageError);
  CHECK_THROWS_AS(StepCounterHook(0), UsageError);
  CHECK_THROWS_AS(SummarySaverHook{std::nullopt}, UsageError);
  CHECK_THROWS_AS(SummarySaverHook(-8), UsageError);
}

// TF: SummarySaverHook.test_save_steps
// TF: SummarySaverHook.test_multiple_summaries
// TF: SummarySaverHook.test_raise_when_scaffold_and_summary_op_both_missing
TEST_CASE("30 steps with N = 8 write all values at 1, 9, 17, 25, after a mark where the run begins") {
  SummarySaverHook hook(8);
  const auto events = written(hook, 30, 1.0);
  CHECK(test::steps_of(events, "start") == Steps{1});
  CHECK(test::steps_of(events, "loss") == Steps{1, 9, 17, 25});
  CHECK(test::steps_of(events, "accuracy") == Steps{1, 9, 17, 25});
}

// TF: SummarySaverHook.test_save_secs_saving_once_every_step
// TF: SummarySaverHook.test_save_secs_saving_once_every_three_steps
TEST_CASE("summaries in seconds: every step, or every third") {
  SummarySaverHook each(std::nullopt, 0.5);
  CHECK(test::steps_of(written(each, 4, 0.5), "loss") == Steps{1, 2, 3, 4});
  SummarySaverHook third(std::nullopt, 9.0);
  CHECK(test::steps_of(written(third, 8, 3.1), "loss") == Steps{1, 4, 7});
}

// TF: SummarySaverHook.test_raise_when_scaffold_and_summary_op_both_present
TEST_CASE("a function of the user's and the values of the step do not exclude each other") {
  SummarySaverHook hook(3, std::nullopt, [](SummaryWriter& writer, const State& state, std::int64_t step) {
    writer.scalar("mine", static_cast<double>(state.global_step()) / 2, step);
  });
  const auto events = written(hook, 5, 1.0);
  CHECK(test::steps_of(events, "loss") == Steps{1, 4});
  CHECK(test::steps_of(events, "mine") == Steps{1, 4});
  for (const auto& event : events) {
    if (event.tag == "mine") CHECK(event.value == doctest::Approx(static_cast<double>(event.step) / 2));
  }
}

TEST_CASE("without a writer nothing is written and nothing fails") {
  test::FakeContext context;
  SummarySaverHook summaries(1);
  StepCounterHook counter(1);
  for (int i = 0; i < 3; ++i) {
    context.time->advance(Seconds{1});
    context.step(summaries, {{"loss", 1.0}});
    context.step(counter);
  }
  summaries.end(context);
  summaries.on_error(context, std::runtime_error("any"));
}

}  // namespace lockstep
