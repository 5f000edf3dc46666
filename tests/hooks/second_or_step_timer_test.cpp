#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/second_or_step_timer.hpp>

namespace lockstep {

// TF: SecondOrStepTimer.test_raise_in_none_secs_and_steps
TEST_CASE("a timer needs an interval, and one above 0") {
  CHECK_THROWS_AS(SecondOrStepTimer(std::nullopt, std::nullopt), UsageError);
  for (const double secs : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_AS(SecondOrStepTimer(secs, std::nullopt), UsageError);
  }
  CHECK_THROWS_AS(SecondOrStepTimer(std::nullopt, 0), UsageError);
  CHECK_THROWS_AS(SecondOrStepTimer(std::nullopt, -3), UsageError);
}

// TF: SecondOrStepTimer.test_raise_in_both_secs_and_steps
// Here either one fires.
TEST_CASE("with both intervals whichever comes first fires, and restarts both") {
  const auto clock = std::make_shared<FakeClock>();
  SecondOrStepTimer timer(10.0, 5, clock);
  CHECK(timer.should_trigger_for_step(1));
  timer.update_last_triggered_step(1);
  CHECK(!timer.should_trigger_for_step(5));
  CHECK(timer.should_trigger_for_step(6));  // by steps
  timer.update_last_triggered_step(6);
  clock->advance(Seconds{10});
  CHECK(timer.should_trigger_for_step(7));  // by seconds
  timer.update_last_triggered_step(7);
  CHECK(!timer.should_trigger_for_step(11));
  CHECK(timer.should_trigger_for_step(12));
  CHECK(timer.describe() == "every 5 steps or 10 s");
}

// TF: SecondOrStepTimer.test_every_secs
TEST_CASE("seconds trigger once they have passed, and never twice on one step") {
  const auto clock = std::make_shared<FakeClock>(Seconds{100});
  SecondOrStepTimer timer(1.0, std::nullopt, clock);
  CHECK(timer.should_trigger_for_step(1));
  timer.update_last_triggered_step(1);
  clock->advance(Seconds{5});
  CHECK(!timer.should_trigger_for_step(1));
  CHECK(timer.should_trigger_for_step(2));
  timer.update_last_triggered_step(2);
  clock->advance(Seconds{0.5});
  CHECK(!timer.should_trigger_for_step(3));
  clock->advance(Seconds{0.5});
  CHECK(timer.should_trigger_for_step(3));
}

// TF: SecondOrStepTimer.test_every_steps
TEST_CASE("steps trigger at 1 and 4, and a late trigger shifts the next") {
  SecondOrStepTimer timer(std::nullopt, 3);
  CHECK(timer.should_trigger_for_step(1));
  timer.update_last_triggered_step(1);
  CHECK(!timer.should_trigger_for_step(1));
  CHECK(!timer.should_trigger_for_step(2));
  CHECK(!timer.should_trigger_for_step(3));
  CHECK(timer.should_trigger_for_step(4));
  CHECK(timer.should_trigger_for_step(9));
  timer.update_last_triggered_step(9);
  CHECK(!timer.should_trigger_for_step(11));
  CHECK(timer.should_trigger_for_step(12));
}

// TF: SecondOrStepTimer.test_update_last_triggered_step
TEST_CASE("an update returns nothing at first, then the seconds and steps in between; reset forgets") {
  const auto clock = std::make_shared<FakeClock>(Seconds{7});
  SecondOrStepTimer timer(std::nullopt, 1, clock);
  CHECK(!timer.last_triggered_step());
  CHECK(!timer.update_last_triggered_step(1));
  CHECK(timer.last_triggered_step() == 1);
  clock->advance(Seconds{2.5});
  const auto elapsed = timer.update_last_triggered_step(5);
  CHECK(elapsed->seconds.count() == doctest::Approx(2.5));
  CHECK(elapsed->steps == 4);
  timer.reset();
  CHECK(!timer.last_triggered_step());
  CHECK(timer.should_trigger_for_step(5));
}

TEST_CASE("a registered timer believes the tally, not its own clock") {
  const auto clock = std::make_shared<FakeClock>();
  SecondOrStepTimer timer(1.0, std::nullopt, clock);
  timer.agree(false);
  CHECK(timer.should_trigger_for_step(1));  // the first question needs no clock
  timer.update_last_triggered_step(1);
  clock->advance(Seconds{1000});
  CHECK(!timer.should_trigger_for_step(2));
  clock->advance(Seconds{-2000});
  timer.agree(true);
  CHECK(timer.should_trigger_for_step(3));
  timer.update_last_triggered_step(3);
  CHECK(!timer.should_trigger_for_step(4));  // the tally spoke of the time before
}

}  // namespace lockstep
