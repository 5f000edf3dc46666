#include <doctest/doctest.h>
#include <fmt/format.h>

#include <lockstep/hooks/arrival_lag.hpp>

namespace lockstep {
namespace {

/// The tally of 4 ranks, of which `late` came last and the others waited `seconds` for it.
Tally tally_of(int late, double seconds) {
  Tally total;
  for (int rank = 0; rank < 4; ++rank) {
    Tally ballot(rank);
    ballot.set_wait(rank == late ? 0.001 : 0.001 + seconds, 0);
    total.add(ballot);
  }
  return total;
}

std::string report(const std::vector<std::pair<int, double>>& steps, double elapsed) {
  const Topology topology{Communicator::self()};
  ArrivalLag lag(8);
  std::int64_t step = 100;
  for (const auto& [late, seconds] : steps) lag.add(++step, tally_of(late, seconds));
  std::string text = lag.report(Seconds{elapsed}, topology);
  const std::string host = topology.all_nodes.host_of(0);
  for (std::size_t at = text.find(host); at != std::string::npos; at = text.find(host)) {
    text.replace(at, host.size(), "HOST");
  }
  return text;
}

}  // namespace

TEST_CASE("a rank that is slow in most steps is named with how often and how long") {
  CHECK(report({{3, 0.02}, {3, 0.02}, {1, 0.005}, {3, 0.015}}, 0.3) ==
        "rank 3 on HOST came last in 3 of 4 steps; the others waited 15 ms a step (20 % of the time)");
}

TEST_CASE("a rank that was slow once is named with the step before its tally") {
  CHECK(report({{3, 0.001}, {2, 2.5}, {1, 0.001}, {3, 0.001}}, 10) ==
        "the others waited 2.5 s for rank 2 on HOST in step 101 alone (25 % of the time went in waiting)");
}

TEST_CASE("waiting for one rank and another is said, too") {
  CHECK(
      report({{0, 0.01}, {1, 0.01}, {2, 0.012}, {3, 0.01}}, 0.1) ==
      "the others waited 10.5 ms a step for now one, now another rank (42 % of the time), most for rank 2 on "
      "HOST");
}

TEST_CASE("little waiting is not worth a word, nor is one rank alone") {
  CHECK(report({{3, 0.001}, {3, 0.001}}, 1) == "");
  CHECK(report({}, 1) == "");
  Tally alone(0);
  alone.set_wait(1, 0);
  ArrivalLag lag;
  lag.add(1, alone);
  CHECK(lag.mean() == 0);
}

TEST_CASE("of more steps than there is room for the latest count") {
  std::vector<std::pair<int, double>> steps(8, {1, 0.5});
  steps.insert(steps.end(), 8, {2, 0.25});
  CHECK(report(steps, 4) ==
        "rank 2 on HOST came last in 8 of 8 steps; the others waited 250 ms a step (50 % of the time)");
}

}  // namespace lockstep
