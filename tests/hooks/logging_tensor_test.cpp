#include <doctest/doctest.h>
#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/logging_tensor.hpp>

#include "fake_context.hpp"

namespace lockstep {
namespace {

using Lines = std::vector<std::string>;

/// Runs some steps, a second each, from step 0; the loss is the step number. Returns what was logged.
Lines run(test::FakeContext& context, LoggingTensorHook& hook, int steps) {
  context.messages->lines.clear();
  context.model.set_global_step(0);
  hook.begin(context);
  hook.after_create_session(context);
  for (int i = 1; i <= steps; ++i) {
    context.time->advance(Seconds{1});
    context.step(hook, {{"loss", static_cast<double>(i)}, {"accuracy", 0.5}});
  }
  hook.end(context);
  return context.messages->lines;
}

}  // namespace

// TF: LoggingTensorHook.test_illegal_args
TEST_CASE("logging takes exactly one interval, or at_end alone") {
  CHECK_THROWS_AS(LoggingTensorHook({.values = {"loss"}}), UsageError);
  CHECK_THROWS_AS(LoggingTensorHook({.every_n_iter = 0}), UsageError);
  CHECK_THROWS_AS(LoggingTensorHook({.every_n_iter = -10}), UsageError);
  CHECK_THROWS_AS(LoggingTensorHook({.every_n_secs = 0.0}), UsageError);
  CHECK_THROWS_AS(LoggingTensorHook({.every_n_iter = 5, .every_n_secs = 5.0}), UsageError);
}

// TF: LoggingTensorHook.test_print_first_step
// TF: LoggingTensorHook.test_print_every_n_steps
// Twice, since begin starts anew.
TEST_CASE("the first run logs without seconds, then every n runs with them, and begin resets") {
  test::FakeContext context;
  LoggingTensorHook hook({.values = {"loss", "step"}, .every_n_iter = 2});
  for (int round = 0; round < 2; ++round) {
    CHECK(run(context, hook, 5) ==
          Lines{"loss = 1, step = 1", "loss = 3, step = 3 (2.000 sec)", "loss = 5, step = 5 (2.000 sec)"});
  }
}

TEST_CASE("logging counts the runs of this session, not global steps") {
  test::FakeContext context;
  LoggingTensorHook hook({.values = {"step"}, .every_n_iter = 10});
  hook.begin(context);
  context.model.set_global_step(104);
  for (int i = 0; i < 11; ++i) context.step(hook, {});
  CHECK(context.messages->lines == Lines{"step = 105", "step = 115 (0.000 sec)"});
}

// TF: LoggingTensorHook.test_print_at_end_only
// TF: LoggingTensorHook.test_print_every_n_steps_and_end
TEST_CASE("at_end logs the last values once, alone or beside an interval") {
  test::FakeContext context;
  LoggingTensorHook only({.values = {"loss"}, .at_end = true});
  LoggingTensorHook both({.values = {"loss"}, .every_n_iter = 3, .at_end = true});
  for (int round = 0; round < 2; ++round) {
    CHECK(run(context, only, 4) == Lines{"loss = 4"});
    CHECK(run(context, both, 5) == Lines{"loss = 1", "loss = 4 (3.000 sec)", "loss = 5"});
  }
  CHECK(run(context, only, 0).empty());
}

// TF: LoggingTensorHook.test_print_every_n_secs
TEST_CASE("with seconds alone nothing is logged at the end") {
  test::FakeContext context;
  LoggingTensorHook hook({.values = {"loss"}, .every_n_secs = 2.0});
  CHECK(run(context, hook, 4) == Lines{"loss = 1", "loss = 3 (2.000 sec)"});
}

// TF: LoggingTensorHook.test_print_every_n_secs_and_end
TEST_CASE("seconds count from the last line") {
  test::FakeContext context;
  LoggingTensorHook hook({.values = {"loss"}, .every_n_secs = 1.5, .at_end = true});
  for (int round = 0; round < 2; ++round) {
    CHECK(run(context, hook, 4) == Lines{"loss = 1", "loss = 3 (2.000 sec)", "loss = 4"});
  }
}

// TF: LoggingTensorHook.test_print_formatter
TEST_CASE("a formatter makes the whole line, and no names means all values in the step's order") {
  test::FakeContext context;
  LoggingTensorHook hook({.every_n_iter = 10, .formatter = [](const StepValues& values) {
                            return fmt::format("{} of {}", *values.find("loss"), values.all().size());
                          }});
  CHECK(run(context, hook, 3) == Lines{"1 of 2"});
  LoggingTensorHook all({.every_n_iter = 10});
  CHECK(run(context, all, 1) == Lines{"loss = 1, accuracy = 0.5"});
}

TEST_CASE("only the chief logs, and a name that no step returns is an error on every rank") {
  for (const int rank : {0, 1}) {
    test::FakeContext context;
    context.my_rank = rank;
    LoggingTensorHook hook({.values = {"loss"}, .every_n_iter = 1});
    CHECK(run(context, hook, 2).size() == (rank == 0 ? 2 : 0));
    LoggingTensorHook misspelt({.values = {"los"}, .every_n_iter = 1});
    CHECK_THROWS_WITH_AS(run(context, misspelt, 1),
                         "LoggingTensorHook has no value 'los' to log; choose from step, loss, accuracy",
                         UsageError);
  }
}

}  // namespace lockstep
