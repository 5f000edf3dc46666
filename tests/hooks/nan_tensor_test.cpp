#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/nan_tensor.hpp>

#include "fake_context.hpp"

namespace lockstep {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE("a NaN or infinite loss fails, or stops all; finite ones and other values do neither") {
  for (const double loss : {0.5, -3e300, kNan, kInfinity, -kInfinity}) {
    CAPTURE(loss);
    test::FakeContext fails;
    test::FakeContext stops;
    NanTensorHook failing;
    NanTensorHook stopping("loss", false);
    const StepValues values{{"other", kNan}, {"loss", loss}};
    if (std::isfinite(loss)) {
      fails.step(failing, values);
      stops.step(stopping, values);
      CHECK(stops.stopped.empty());
    } else {
      CHECK_THROWS_AS(fails.step(failing, values), TrainingError);
      stops.step(stopping, values);
      CHECK(stops.stopped.size() == 1);
      CHECK(stops.stopped.front().find("loss is not finite") == 0);
      CHECK(stops.stopped.front().find("at step 1") != std::string::npos);
      CHECK(stops.messages->lines == stops.stopped);
    }
    CHECK(fails.stopped.empty());
  }
}

TEST_CASE("a rank that says not_finite is named, whatever the loss is") {
  test::FakeContext context;
  NanTensorHook hook;
  Tally tally(2);
  tally.say(Says::not_finite);
  CHECK_THROWS_WITH_AS(context.step(hook, {{"loss", 0.5}}, tally),
                       "a value or gradient is not finite at step 1, first on rank 2; lower the learning "
                       "rate or look at the data of this step. The newest checkpoint is from before",
                       TrainingError);
  CHECK_THROWS_AS(context.step(hook, {}, tally), TrainingError);
}

}  // namespace lockstep
