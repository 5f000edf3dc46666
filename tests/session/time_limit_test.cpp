#include <string>

#include <doctest/doctest.h>

#include <lockstep/session/time_limit.hpp>

using namespace lockstep;

TEST_CASE("a run leaves when less is left than two slow saves, two slow steps and the margin take") {
  TimeLimit limit(Seconds{100}, Seconds{10}, "the limit");
  CHECK_FALSE(limit.reached(Seconds{50}, Seconds{5}));  // no step is known yet: 20 s are needed
  CHECK_FALSE(limit.reached(Seconds{54}, Seconds{5}));  // steps of 4 s: 28 s
  CHECK_FALSE(limit.reached(Seconds{58}, Seconds{5}));
  CHECK_FALSE(limit.reached(Seconds{62}, Seconds{5}));
  CHECK_FALSE(limit.reached(Seconds{66}, Seconds{5}));
  CHECK_FALSE(limit.reached(Seconds{70}, Seconds{5}));
  CHECK(limit.reached(Seconds{74}, Seconds{5}));
  CHECK(limit.describe() ==
        "26.0 s are left of the limit: a slow save takes 5.0 s, a slow step 4.00 s, the margin is 10 s");
}

TEST_CASE("without saves, steps and a margin there is time until the very end") {
  TimeLimit limit(Seconds{100}, Seconds{0}, "the limit");
  CHECK_FALSE(limit.reached(Seconds{100}, Seconds{0}));
  TimeLimit other(Seconds{100}, Seconds{0}, "the limit");
  CHECK(other.reached(Seconds{100.1}, Seconds{0}));
}

TEST_CASE("one slow step is remembered for a while, and then forgotten") {
  TimeLimit limit(Seconds{1000}, Seconds{0}, "the limit");
  double now = 0;
  CHECK_FALSE(limit.reached(Seconds{now}, Seconds{0}));
  CHECK_FALSE(limit.reached(Seconds{now += 100}, Seconds{0}));
  for (int step = 0; step < 10; ++step) limit.reached(Seconds{now += 0.1}, Seconds{0});
  CHECK(limit.describe().find("slow step 90.44 s") != std::string::npos);
  for (int step = 0; step < 1000; ++step) limit.reached(Seconds{now += 0.1}, Seconds{0});
  CHECK(limit.describe().find("slow step 0.10 s") != std::string::npos);
}

TEST_CASE("saves that have become faster leave more time") {
  TimeLimit limit(Seconds{100}, Seconds{0}, "the limit");
  CHECK_FALSE(limit.reached(Seconds{40}, Seconds{29}));
  CHECK_FALSE(limit.reached(Seconds{41}, Seconds{1}));
  CHECK_FALSE(limit.reached(Seconds{42}, Seconds{1}));
  CHECK(limit.describe().find("a slow save takes 1.0 s") != std::string::npos);
  CHECK(limit.reached(Seconds{43}, Seconds{28}));
}
