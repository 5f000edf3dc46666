#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/early_stopping.hpp>

#include "fake_context.hpp"

namespace lockstep {
namespace {

using Mode = EarlyStoppingHook::Mode;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// The step after which the hook stops when the steps return these values; 0 when it does not.
std::int64_t stops_after(const EarlyStoppingHook::Options& options, const std::vector<double>& values) {
  test::FakeContext context;
  EarlyStoppingHook hook(options);
  hook.begin(context);
  hook.after_create_session(context);
  for (const double value : values) {
    context.step(hook, {{"loss", value}});
    if (!context.stopped.empty()) return context.global_step();
  }
  return 0;
}

}  // namespace

TEST_CASE("early stopping waits as long as it is told, from the best value on") {
  CHECK(stops_after({.patience = 1}, {3, 2, 1}) == 0);
  CHECK(stops_after({.patience = 1}, {3, 3, 1}) == 2);
  CHECK(stops_after({.patience = 2}, {3, 3, 2, 2.5, 2.5, 0}) == 5);
  CHECK(stops_after({.patience = 3}, {3, 4, 4, 2, 4, 4, 4}) == 7);
}

TEST_CASE("what falls by no more than min_delta has not become better") {
  const std::vector<double> slowly{3, 2.5, 2, 1.5};
  CHECK(stops_after({.patience = 2, .min_delta = 0.49}, slowly) == 0);
  CHECK(stops_after({.patience = 1, .min_delta = 0.5}, slowly) == 2);
  CHECK(stops_after({.patience = 2, .min_delta = 0.5}, slowly) == 0);  // two steps make a whole
}

TEST_CASE("with mode max larger is better") {
  CHECK(stops_after({.patience = 2, .mode = Mode::max}, {1, 2, 3, 4}) == 0);
  CHECK(stops_after({.patience = 2, .mode = Mode::max}, {1, 3, 2, 2}) == 4);
  CHECK(stops_after({.patience = 2, .min_delta = 1, .mode = Mode::max}, {-5, -4, -4}) == 3);
}

TEST_CASE("NaN is never better, not even as the first value") {
  CHECK(stops_after({.patience = 3}, {kNan, kNan, kNan, kNan}) == 4);
  CHECK(stops_after({.patience = 3}, {kNan, kNan, 5, kNan, kNan, kNan}) == 6);
  CHECK(stops_after({.patience = 3, .mode = Mode::max}, {kNan, -1e300, kNan, kNan, kNan}) == 5);
}

TEST_CASE("early stopping says at start what it looks for, and refuses what makes no sense") {
  CHECK(EarlyStoppingHook({.patience = 7, .min_delta = 0.5}).describe() ==
        "early_stopping when loss does not fall by more than 0.5 in 7 steps");
  CHECK(EarlyStoppingHook({.metric = "accuracy", .patience = 7, .mode = Mode::max}).describe() ==
        "early_stopping when accuracy does not rise by more than 0 in 7 steps");
  CHECK_THROWS_AS(EarlyStoppingHook({.patience = 0}), UsageError);
  CHECK_THROWS_AS(EarlyStoppingHook({.metric = "", .patience = 1}), UsageError);
  for (const double delta : {-1.0, kNan, std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_AS(EarlyStoppingHook({.patience = 1, .min_delta = delta}), UsageError);
  }
  CHECK_THROWS_AS(stops_after({.metric = "los", .patience = 1}, {1}), UsageError);
}

}  // namespace lockstep
