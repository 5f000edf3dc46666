#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

/// What one rank found of its machine. A figure that was not measured is 0.
struct ProbedRank {
  std::int64_t rank = 0;
  std::int64_t node = 0;
  std::string host = {};
  double flops = 0;             ///< a second, of matrix products on one core, all ranks at work
  double memory_bandwidth = 0;  ///< bytes read and written a second by one core, all ranks at work
  double inside_latency = 0;    ///< seconds of a message of 8 bytes to a rank of the same node
  double inside_bandwidth = 0;  ///< bytes a second of a message of 4 MiB there
  double between_latency = 0;   ///< the same to another node, of the first rank of each
  double between_bandwidth = 0;
  double write_bandwidth =
      0;                    ///< bytes a second of a file written and synced, of the first rank of each node
  double sync_seconds = 0;  ///< of 4 KiB written and synced
};

/// A figure of the whole allocation.
struct ProbeFigure {
  std::string_view name;
  std::string_view unit;
  double factor = 1;  ///< from the unit of ProbedRank to this one
  bool more_is_better = true;
  double ProbedRank::*of = nullptr;
};

/// All figures of a rank, in the order of their members.
const std::vector<ProbeFigure>& probe_figures();

/// Where a rank stands out for the worse.
struct ProbeOutlier {
  std::int64_t rank = 0;
  std::string host;
  std::string_view figure;
  double share = 0;  ///< of the median over the ranks that have the figure
};

/// Ranks whose rates are below 85 % of the median, or whose times are above 150 % of it. Of three ranks and
/// more.
std::vector<ProbeOutlier> outliers(const std::vector<ProbedRank>& ranks);

/// The median of a figure over the ranks that have it; 0 where none has.
double median_of(const std::vector<ProbedRank>& ranks, double ProbedRank::*figure);

/// A table of medians, least and most, and the outliers by node.
std::string describe(const std::vector<ProbedRank>& ranks);

std::string to_json(const std::vector<ProbedRank>& ranks);

/// Throws DataError for what to_json did not write.
std::vector<ProbedRank> probed_ranks(std::string_view json);

}  // namespace lockstep
