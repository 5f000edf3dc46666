#include <algorithm>
#include <map>

#include <fmt/format.h>

#include <lockstep/hooks/arrival_lag.hpp>

namespace lockstep {
namespace {

std::string in_words(double seconds) {
  if (seconds >= 1) return fmt::format("{:.3g} s", seconds);
  if (seconds >= 1e-3) return fmt::format("{:.3g} ms", seconds * 1e3);
  return fmt::format("{:.3g} us", seconds * 1e6);
}

}  // namespace

void ArrivalLag::add(std::int64_t step, const Tally& tally) {
  if (tally.wait_min_rank() == Tally::kNobody || tally.ranks() < 2) return;
  const Lag lag{step - 1, tally.wait_min_rank(), tally.wait_min_node(), tally.arrival_lag()};
  if (lags_.size() < lags_.capacity()) {
    lags_.push_back(lag);
  } else if (!lags_.empty()) {
    lags_[next_++ % lags_.size()] = lag;
  }
}

double ArrivalLag::mean() const {
  double sum = 0;
  for (const Lag& lag : lags_) sum += lag.seconds;
  return lags_.empty() ? 0 : sum / static_cast<double>(lags_.size());
}

std::string ArrivalLag::report(Seconds elapsed, const Topology& topology) const {
  constexpr double kWorthSaying = 0.1;
  struct Late {
    std::int64_t steps = 0;
    double seconds = 0;
    std::int32_t node = 0;
  };
  std::map<std::int32_t, Late> by_rank;
  double total = 0;
  for (const Lag& lag : lags_) {
    Late& late = by_rank[lag.rank];
    ++late.steps;
    late.seconds += lag.seconds;
    late.node = lag.node;
    total += lag.seconds;
  }
  if (lags_.empty() || !(total >= kWorthSaying * elapsed.count())) return {};
  const auto on = [&](std::int32_t node) { return topology.all_nodes.host_of(node); };
  const auto share = fmt::format("{:.0f} % of the time", 100 * total / elapsed.count());
  const auto once = std::max_element(lags_.begin(), lags_.end(),
                                     [](const Lag& a, const Lag& b) { return a.seconds < b.seconds; });
  if (once->seconds > total / 2) {
    return fmt::format("the others waited {} for rank {} on {} in step {} alone ({} went in waiting)",
                       in_words(once->seconds), once->rank, on(once->node), once->step, share);
  }
  const auto worst = std::max_element(by_rank.begin(), by_rank.end(), [](const auto& a, const auto& b) {
    return a.second.seconds < b.second.seconds;
  });
  const auto& [rank, late] = *worst;
  const std::string waited =
      fmt::format("the others waited {} a step", in_words(total / static_cast<double>(lags_.size())));
  if (late.seconds > total / 2) {
    return fmt::format("rank {} on {} came last in {} of {} steps; {} ({})", rank, on(late.node), late.steps,
                       lags_.size(), waited, share);
  }
  return fmt::format("{} for now one, now another rank ({}), most for rank {} on {}", waited, share, rank,
                     on(late.node));
}

}  // namespace lockstep
