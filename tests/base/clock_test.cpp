#include <doctest/doctest.h>

#include <lockstep/base/clock.hpp>

using namespace lockstep;

TEST_CASE("the system's clock does not go back and sleeps at least as long as asked") {
  SystemClock clock;
  const Seconds before = clock.now();
  clock.sleep(Seconds(0.01));
  CHECK(clock.now() - before >= Seconds(0.01));
  CHECK(clock.wall_seconds() > 1.6e9);  // after 2020
}

TEST_CASE("a fake clock moves only when told, both of its times together") {
  FakeClock clock(Seconds(5), 1000);
  CHECK(clock.now() == Seconds(5));
  CHECK(clock.wall_seconds() == doctest::Approx(1000));
  clock.advance(Seconds(2));
  clock.sleep(Seconds(1));
  CHECK(clock.now() == Seconds(8));
  CHECK(clock.wall_seconds() == doctest::Approx(1003));
}
