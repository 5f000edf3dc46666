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
std::vector<test::Event> written(Hook& hook, int steps, double seconds) {
  const test::Folder folder;
  test::FakeContext context;
  context.writer = SummaryWriter(
      std::make_unique<EventWriter>(PosixFileSystem().open_directory(folder.path), *context.time, "here"),
      context.log());
  hook.begin(context);
  hook.after_create_session(context);
  for (int i = 0; i < steps; ++i) {
    context.time->advance(Seconds{seconds});
    context.step(hook, {{"loss", 0.5}, {"accuracy", 0.25}});
  }
  hook.end(context);
  context.writer.flush();
  return test::events_in(folder.path);
}

}  // namespace

// test_step_counter_every_n_steps
TEST_CASE("30 steps with N = 10 give global_step/sec at 11 and 21") {
  StepCounterHook hook(10);
  const auto events = written(hook, 30, 0.25);
  CHECK(test::steps_of(events, "global_step/sec") == Steps{11, 21});
  for (const auto& event : events) {
    if (event.tag == "global_step/sec") CHECK(event.value == doctest::Approx(4.0));
  }
}

// test_step_counter_every_n_secs
TEST_CASE("seconds give global_step/sec at the second trigger and later ones") {
  StepCounterHook hook(std::nullopt, 0.1);
  CHECK(test::steps_of(written(hook, 3, 0.2), "global_step/sec") == Steps{2, 3});
}

TEST_CASE("a counter and a summary need an interval above 0") {
  CHECK_THROWS_AS(StepCounterHook{std::nullopt}, UsageError);
  CHECK_THROWS_AS(StepCounterHook(0), UsageError);
  CHECK_THROWS_AS(SummarySaverHook{std::nullopt}, UsageError);
  CHECK_THROWS_AS(SummarySaverHook(-8), UsageError);
}

// test_save_steps, test_multiple_summaries
TEST_CASE("30 steps with N = 8 write all values at 1, 9, 17, 25, after a mark where the run begins") {
  SummarySaverHook hook(8);
  const auto events = written(hook, 30, 1.0);
  CHECK(test::steps_of(events, "start") == Steps{1});
  CHECK(test::steps_of(events, "loss") == Steps{1, 9, 17, 25});
  CHECK(test::steps_of(events, "accuracy") == Steps{1, 9, 17, 25});
}

// test_save_secs_saving_once_every_step, test_save_secs_saving_once_every_three_steps
TEST_CASE("summaries in seconds: every step, or every third") {
  SummarySaverHook each(std::nullopt, 0.5);
  CHECK(test::steps_of(written(each, 4, 0.5), "loss") == Steps{1, 2, 3, 4});
  SummarySaverHook third(std::nullopt, 9.0);
  CHECK(test::steps_of(written(third, 8, 3.1), "loss") == Steps{1, 4, 7});
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
