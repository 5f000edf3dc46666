#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/scaling/probe.hpp>

namespace lockstep {
namespace {

std::vector<ProbedRank> ranks_of(int count) {
  std::vector<ProbedRank> ranks;
  for (int r = 0; r < count; ++r) {
    ranks.push_back({.rank = r, .node = r / 2, .host = "node-" + std::to_string(r / 2)});
    ranks.back().flops = 100e9 + r * 1e9;
    ranks.back().inside_latency = 1e-6;
    if (r % 2 == 0) ranks.back().write_bandwidth = 5e8;
  }
  return ranks;
}

}  // namespace

TEST_CASE("who is much slower than the median is an outlier, by its own figure, and nobody else") {
  auto ranks = ranks_of(8);
  CHECK(outliers(ranks).empty());
  ranks[5].flops = 60e9;
  ranks[2].inside_latency = 1.6e-6;
  ranks[3].inside_latency = 0.1e-6;  // faster is welcome
  ranks[7].flops = 500e9;
  const auto found = outliers(ranks);
  REQUIRE(found.size() == 2);
  CHECK(found[0].rank == 5);
  CHECK(found[0].host == "node-2");
  CHECK(found[0].figure == "matrix products");
  CHECK(found[0].share == doctest::Approx(60.0 / 102.5));
  CHECK(found[1].rank == 2);
  CHECK(found[1].figure == "latency inside a node");
  CHECK(describe(ranks).find("outlier: matrix products of rank 5 on node-2 is 59 % of the median") !=
        std::string::npos);
}

TEST_CASE("of two ranks nobody can say which is the outlier, and what was not measured is none") {
  auto ranks = ranks_of(2);
  ranks[1].flops = 1e9;
  CHECK(outliers(ranks).empty());
  CHECK(median_of(ranks_of(8), &ProbedRank::write_bandwidth) == 5e8);
  CHECK(median_of(ranks_of(8), &ProbedRank::between_latency) == 0);
  CHECK(describe(ranks).find("between nodes") == std::string::npos);
}

TEST_CASE("a probe comes back from its JSON as it was, and from no other") {
  const auto ranks = ranks_of(3);
  const std::string text = to_json(ranks);
  CHECK(to_json(probed_ranks(text)) == text);
  CHECK(probed_ranks(text)[2].host == "node-1");
  CHECK_THROWS_AS(probed_ranks("{]"), DataError);
  CHECK_THROWS_AS(probed_ranks("[{\"rank\": 1}]"), DataError);
}

}  // namespace lockstep
