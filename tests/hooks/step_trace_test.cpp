#include <doctest/doctest.h>

#include <lockstep/hooks/step_trace.hpp>

namespace lockstep {

TEST_CASE("a trace keeps the phases between start and stop, in the order of their ends") {
  FakeClock clock(Seconds{100});
  StepTrace trace;
  { const auto before = trace.phase("before"); }
  trace.meet();
  CHECK(trace.phases().empty());
  CHECK(!trace.met());
  trace.start(clock);
  {
    const auto outer = trace.phase("outer");
    clock.advance(Seconds{1});
    {
      const auto inner = trace.phase("inner");
      clock.advance(Seconds{2});
    }
    trace.meet();
  }
  trace.stop();
  { const auto after = trace.phase("after"); }
  REQUIRE(trace.phases().size() == 2);
  CHECK(trace.phases()[0].name == "inner");
  CHECK(trace.phases()[0].begin == Seconds{101});
  CHECK(trace.phases()[0].end == Seconds{103});
  CHECK(trace.phases()[1].name == "outer");
  CHECK(trace.phases()[1].begin == Seconds{100});
  CHECK(trace.met() == Seconds{103});
  trace.start(clock);
  CHECK(trace.phases().empty());
  CHECK(!trace.met());
}

}  // namespace lockstep
