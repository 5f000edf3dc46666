#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <lockstep/base/error.hpp>
#include <lockstep/scaling/probe.hpp>
#include <lockstep/scaling/statistics.hpp>

namespace lockstep {
namespace {

constexpr double kLeastRate = 0.85;
constexpr double kMostTime = 1.5;

/// Of the ranks that have it.
std::vector<double> values_of(const std::vector<ProbedRank>& ranks, double ProbedRank::*figure) {
  std::vector<double> values;
  for (const ProbedRank& rank : ranks) {
    if (rank.*figure > 0) values.push_back(rank.*figure);
  }
  return values;
}

}  // namespace

const std::vector<ProbeFigure>& probe_figures() {
  static const std::vector<ProbeFigure> figures = {
      {"matrix products", "Gflop/s", 1e-9, true, &ProbedRank::flops},
      {"memory", "GB/s", 1e-9, true, &ProbedRank::memory_bandwidth},
      {"latency inside a node", "us", 1e6, false, &ProbedRank::inside_latency},
      {"bandwidth inside a node", "GB/s", 1e-9, true, &ProbedRank::inside_bandwidth},
      {"latency between nodes", "us", 1e6, false, &ProbedRank::between_latency},
      {"bandwidth between nodes", "GB/s", 1e-9, true, &ProbedRank::between_bandwidth},
      {"file written and synced", "MB/s", 1e-6, true, &ProbedRank::write_bandwidth},
      {"4 KiB written and synced", "ms", 1e3, false, &ProbedRank::sync_seconds}};
  return figures;
}

double median_of(const std::vector<ProbedRank>& ranks, double ProbedRank::*figure) {
  std::vector<double> values = values_of(ranks, figure);
  return values.empty() ? 0 : median(std::move(values));
}

std::vector<ProbeOutlier> outliers(const std::vector<ProbedRank>& ranks) {
  constexpr std::size_t kEnough = 3;
  std::vector<ProbeOutlier> found;
  for (const ProbeFigure& figure : probe_figures()) {
    const std::vector<double> values = values_of(ranks, figure.of);
    if (values.size() < kEnough) continue;
    const double middle = median(values);
    for (const ProbedRank& rank : ranks) {
      const double share = rank.*figure.of / middle;
      if (share > 0 && (figure.more_is_better ? share < kLeastRate : share > kMostTime)) {
        found.push_back({rank.rank, rank.host, figure.name, share});
      }
    }
  }
  return found;
}

std::string describe(const std::vector<ProbedRank>& ranks) {
  std::int64_t nodes = 0;
  for (const ProbedRank& rank : ranks) nodes = std::max(nodes, rank.node + 1);
  std::string text = fmt::format("{} ranks on {} node{}\n{:<26} {:>10} {:>10} {:>10}\n", ranks.size(), nodes,
                                 nodes == 1 ? "" : "s", "", "least", "median", "most");
  for (const ProbeFigure& figure : probe_figures()) {
    const std::vector<double> values = values_of(ranks, figure.of);
    if (values.empty()) continue;
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    text += fmt::format("{:<26} {:>10.2f} {:>10.2f} {:>10.2f} {}\n", figure.name, *least * figure.factor,
                        median(values) * figure.factor, *most * figure.factor, figure.unit);
  }
  for (const ProbeOutlier& outlier : outliers(ranks)) {
    text += fmt::format("outlier: {} of rank {} on {} is {:.0f} % of the median\n", outlier.figure,
                        outlier.rank, outlier.host, 100 * outlier.share);
  }
  return text;
}

std::string to_json(const std::vector<ProbedRank>& ranks) {
  nlohmann::json array = nlohmann::json::array();
  for (const ProbedRank& rank : ranks) {
    nlohmann::json object = {{"rank", rank.rank}, {"node", rank.node}, {"host", rank.host}};
    for (const ProbeFigure& figure : probe_figures()) object[std::string(figure.name)] = rank.*figure.of;
    array.push_back(std::move(object));
  }
  return array.dump(1) + "\n";
}

std::vector<ProbedRank> probed_ranks(std::string_view json) {
  try {
    std::vector<ProbedRank> ranks;
    for (const nlohmann::json& object : nlohmann::json::parse(json)) {
      ProbedRank rank;
      rank.rank = object.at("rank");
      rank.node = object.at("node");
      rank.host = object.at("host");
      for (const ProbeFigure& figure : probe_figures()) rank.*figure.of = object.at(std::string(figure.name));
      ranks.push_back(std::move(rank));
    }
    return ranks;
  } catch (const nlohmann::json::exception& error) {
    throw DataError(fmt::format("a probe cannot be read ({})", error.what()));
  }
}

}  // namespace lockstep
