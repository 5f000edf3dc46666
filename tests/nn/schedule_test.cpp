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

TEST_CASE("decay in steps and smooth decay meet where a step is whole") {
  const StepDecay step(0.8F, 10, 0.5);
  const ExponentialDecay smooth(0.8F, 10, 0.5);
  CHECK(step.learning_rate(0) == 0.8F);
  CHECK(step.learning_rate(9) == 0.8F);
  CHECK(step.learning_rate(10) == 0.4F);
  CHECK(step.learning_rate(39) == 0.1F);
  CHECK(smooth.learning_rate(0) == 0.8F);
  CHECK(smooth.learning_rate(5) == doctest::Approx(0.8 * std::sqrt(0.5)));
  CHECK(smooth.learning_rate(30) == doctest::Approx(0.1));
  CHECK(step.describe() == "step 0.8 times 0.5 every 10 steps");
  CHECK(smooth.describe() == "exponential 0.8 times 0.5 in 10 steps");
}

TEST_CASE("cosine and polynomial fall from the rate to the end and stay there") {
  const CosineDecay cosine(1.0F, 100, 0.2F);
  CHECK(cosine.learning_rate(0) == 1.0F);
  CHECK(cosine.learning_rate(50) == doctest::Approx(0.6));
  CHECK(cosine.learning_rate(25) == doctest::Approx(0.2 + 0.8 * (0.5 + std::sqrt(0.125))));
  CHECK(cosine.learning_rate(100) == 0.2F);
  CHECK(cosine.learning_rate(1'000'000) == 0.2F);
  const PolynomialDecay line(1.0F, 100, 1, 0.5F);
  CHECK(line.learning_rate(0) == 1.0F);
  CHECK(line.learning_rate(50) == 0.75F);
  CHECK(line.learning_rate(200) == 0.5F);
  CHECK(PolynomialDecay(1.0F, 10, 2).learning_rate(5) == 0.25F);
}

TEST_CASE("one cycle rises for 30 % of the steps and falls to nearly nothing") {
  const OneCycle cycle(1.0F, 100);
  CHECK(cycle.learning_rate(0) == doctest::Approx(0.04));
  CHECK(cycle.learning_rate(15) == doctest::Approx(0.52));
  CHECK(cycle.learning_rate(30) == 1.0F);
  CHECK(cycle.learning_rate(65) == doctest::Approx(0.5).epsilon(1e-4));
  CHECK(cycle.learning_rate(100) == doctest::Approx(4e-6));
  CHECK(cycle.learning_rate(500) == doctest::Approx(4e-6));
}

TEST_CASE("a rate is carried over to another batch by its ratio or the root of it") {
  CHECK(scaled_rate(0.1F, BatchScaling::none, 1024, 256) == 0.1F);
  CHECK(scaled_rate(0.1F, BatchScaling::linear, 1024, 256) == doctest::Approx(0.4));
  CHECK(scaled_rate(0.1F, BatchScaling::square_root, 1024, 256) == doctest::Approx(0.2));
  CHECK_THROWS_AS(scaled_rate(0.1F, BatchScaling::linear, 1024, 0), UsageError);
}

TEST_CASE("rates and lengths that make no sense are refused") {
  CHECK_THROWS_AS(StepDecay(0.1F, 0, 0.5), UsageError);
  CHECK_THROWS_AS(StepDecay(0.1F, 5, 1.5), UsageError);
  CHECK_THROWS_AS(ExponentialDecay(0.1F, 5, 0), UsageError);
  CHECK_THROWS_AS(CosineDecay(0.1F, 0), UsageError);
  CHECK_THROWS_AS(CosineDecay(0.1F, 10, kNan), UsageError);
  CHECK_THROWS_AS(PolynomialDecay(0.1F, 10, -1), UsageError);
  CHECK_THROWS_AS(OneCycle(kNan, 10), UsageError);
  CHECK_THROWS_AS(ConstantRate(-1.0F), UsageError);
  CHECK_THROWS_AS(ConstantRate{kNan}, UsageError);
  CHECK_THROWS_AS(WarmUp(-1, std::make_unique<ConstantRate>(0.4F)), UsageError);
}

}  // namespace
}  // namespace lockstep
