#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/schedule.hpp>

namespace lockstep {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST_CASE("a constant rate is the same at every step") {
  const ConstantRate rate(0.1F);
  CHECK(rate.learning_rate(0) == 0.1F);
  CHECK(rate.learning_rate(1'000'000'000'000) == 0.1F);
  CHECK(rate.describe() == "constant 0.1");
}

TEST_CASE("warm-up rises by equal parts, meets the rate with its last step and then keeps it") {
  const WarmUp rate(4, std::make_unique<ConstantRate>(0.4F));
  CHECK(rate.learning_rate(0) == doctest::Approx(0.1));
  CHECK(rate.learning_rate(1) == doctest::Approx(0.2));
  CHECK(rate.learning_rate(3) == 0.4F);
  CHECK(rate.learning_rate(4) == 0.4F);
  CHECK(rate.describe() == "constant 0.4, warm-up 4 steps");
}

TEST_CASE("a warm-up of no steps changes nothing") {
  const WarmUp rate(0, std::make_unique<ConstantRate>(0.4F));
  CHECK(rate.learning_rate(0) == 0.4F);
  CHECK(rate.describe() == "constant 0.4");
}

TEST_CASE("rates and lengths that make no sense are refused") {
  CHECK_THROWS_AS(ConstantRate(-1.0F), UsageError);
  CHECK_THROWS_AS(ConstantRate{kNan}, UsageError);
  CHECK_THROWS_AS(WarmUp(-1, std::make_unique<ConstantRate>(0.4F)), UsageError);
}

}  // namespace
}  // namespace lockstep
