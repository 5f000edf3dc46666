#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/stop_at_step.hpp>

#include "fake_context.hpp"

namespace lockstep {
namespace {

/// Whether the hook stops when a step ends at `step`.
bool stops_at(StopAtStepHook& hook, test::FakeContext& context, std::int64_t step) {
  context.stopped.clear();
  context.model.set_global_step(step - 1);
  context.step(hook);
  return !context.stopped.empty();
}

}  // namespace

// TF: StopAtStepHook.test_raise_in_both_last_step_and_num_steps
TEST_CASE("a stop needs exactly one number, not below 0") {
  CHECK_THROWS_AS(StopAtStepHook(10, 20), UsageError);
  CHECK_THROWS_AS(StopAtStepHook(std::nullopt, std::nullopt), UsageError);
  CHECK_THROWS_AS(StopAtStepHook(-1), UsageError);
  CHECK_THROWS_AS(StopAtStepHook(std::nullopt, -5), UsageError);
}

// TF: StopAtStepHook.test_stop_based_on_last_step
TEST_CASE("last_step 10: not after 9, but after 10 and after 11") {
  test::FakeContext context;
  StopAtStepHook hook(std::nullopt, 10);
  hook.begin(context);
  context.model.set_global_step(5);
  hook.after_create_session(context);
  CHECK(context.stopped.empty());
  CHECK(!stops_at(hook, context, 9));
  CHECK(stops_at(hook, context, 10));
  CHECK(context.stopped.front() == "reached step 10");
  CHECK(stops_at(hook, context, 11));
}

// TF: StopAtStepHook.test_stop_based_on_num_step
TEST_CASE("num_steps 10 from step 5: not after 14, but after 15, and a session made again adds none") {
  test::FakeContext context;
  StopAtStepHook hook(10);
  context.model.set_global_step(5);
  hook.after_create_session(context);
  CHECK(!stops_at(hook, context, 14));
  CHECK(stops_at(hook, context, 15));
  context.stopped.clear();
  hook.after_create_session(context);
  CHECK(hook.last_step() == 15);
  CHECK(context.stopped.size() == 1);
}

// TF: StopAtStepHook.test_stop_based_with_multiple_steps
TEST_CASE("a run that makes several steps stops at the number or behind it") {
  test::FakeContext context;
  StopAtStepHook hook(10);
  context.model.set_global_step(5);
  hook.after_create_session(context);
  const auto run_of = [&](std::int64_t steps) {
    return stops_at(hook, context, context.global_step() + steps);
  };
  CHECK(!run_of(5));
  CHECK(!run_of(4));
  CHECK(run_of(3));
  CHECK(context.global_step() == 17);
}

// A deviation: the original does one more step when it is restored at its last.
TEST_CASE("a session that begins at or past the last step stops before its first") {
  for (const std::int64_t step : {9, 10, 11}) {
    test::FakeContext context;
    StopAtStepHook hook(std::nullopt, 10);
    context.model.set_global_step(step);
    hook.after_create_session(context);
    CHECK(context.stopped.empty() == (step < 10));
  }
}

}  // namespace lockstep
