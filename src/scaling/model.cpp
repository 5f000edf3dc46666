#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include <Eigen/Dense>
#include <fmt/format.h>

#include <lockstep/scaling/model.hpp>
#include <lockstep/scaling/statistics.hpp>

namespace lockstep {
namespace {

constexpr double kMostError = 0.1;
constexpr std::size_t kLeastRankCounts = 3;
constexpr std::int64_t kMostRanks = 8192;
constexpr double kGoodShare = 0.8;

using Coefficients = std::array<double, ScalingModel::kTerms>;
using Terms = std::array<Coefficients, kStepParts.size()>;
constexpr auto kCompute = static_cast<std::size_t>(StepPart::compute);
constexpr auto kReduction = static_cast<std::size_t>(StepPart::reduction);

/// Of the reduction.
constexpr std::array<std::string_view, ScalingModel::kTerms> kReductionTerms{
    "latency inside nodes", "bytes inside nodes", "latency between nodes", "bytes between nodes"};
constexpr std::size_t kLatencyBetween = 2;
constexpr std::size_t kBytesBetween = 3;

/// What the coefficients of each part are multiplied by.
Terms terms(std::int64_t ranks, std::int64_t nodes, std::int64_t micro_batches) {
  const auto n = static_cast<double>(ranks);
  const auto apart = static_cast<double>(nodes);
  const auto together = static_cast<double>((ranks + nodes - 1) / nodes);
  const auto most = static_cast<double>((micro_batches + ranks - 1) / ranks);
  const double rounds = std::log2(n);
  const double latest = std::sqrt(2 * std::log(n));
  return {{{1, most},
           {most, ranks > 1 ? most : 0},
           {std::log2(together), (together - 1) / together, std::log2(apart), (apart - 1) / apart},
           {latest, latest * most},
           {1, 1 / n},
           {1, 0},
           {1, rounds}}};
}

/// One number of ranks in one mode.
struct Point {
  ScalingMode mode = ScalingMode::strong;
  std::int64_t ranks = 1;
  std::int64_t nodes = 1;
  std::int64_t global_batch = 1;
  double step_seconds = 0;
  std::array<double, kStepParts.size()> parts{};
};

std::vector<Point> points_of(std::span<const ScalingSample> samples) {
  std::map<std::pair<ScalingMode, std::int64_t>, std::vector<const ScalingSample*>> groups;
  for (const ScalingSample& sample : samples) groups[{sample.mode, sample.ranks}].push_back(&sample);
  std::vector<Point> points;
  for (const auto& [key, group] : groups) {
    Point& point = points.emplace_back();
    point.mode = key.first;
    point.ranks = key.second;
    point.nodes = group.front()->nodes;
    point.global_batch = group.front()->global_batch;
    const auto middle = [&group = group](auto value) {
      std::vector<double> values;
      for (const ScalingSample* sample : group) values.push_back(value(*sample));
      return median(std::move(values));
    };
    point.step_seconds = middle([](const ScalingSample& s) { return s.step_seconds; });
    for (std::size_t p = 0; p < point.parts.size(); ++p) {
      point.parts[p] = middle([p](const ScalingSample& s) { return s.part_seconds[p]; });
    }
  }
  return points;
}

/// Coefficients, none negative, of least squares over rows (x, y), each divided by its scale.
struct Normal {
  using Matrix = Eigen::Matrix<double, ScalingModel::kTerms, ScalingModel::kTerms>;
  using Vector = Eigen::Vector<double, ScalingModel::kTerms>;
  Matrix xx = Matrix::Zero();
  Vector xy = Vector::Zero();

  void add(const Coefficients& terms, double y, double scale) {
    const Vector x = Eigen::Map<const Vector>(terms.data()) / scale;
    xx += x * x.transpose();
    xy += x * (y / scale);
  }

  /// The best of all choices of terms whose own solution has none below zero; of equal ones, the fewest
  /// terms.
  Coefficients solution() const {
    Coefficients best{};
    double most = 0;
    for (int size = 1; size <= static_cast<int>(ScalingModel::kTerms); ++size) {
      for (unsigned chosen = 1; chosen < (1U << ScalingModel::kTerms); ++chosen) {
        if (std::popcount(chosen) != size) continue;
        std::vector<int> of;
        for (int i = 0; i < static_cast<int>(ScalingModel::kTerms); ++i) {
          if ((chosen >> i & 1U) != 0) of.push_back(i);
        }
        // Terms of very different size: as fractions of themselves.
        const Eigen::VectorXd scale = xx.diagonal()(of).cwiseSqrt();
        if ((scale.array() <= 0).any()) continue;
        const Eigen::MatrixXd a =
            scale.cwiseInverse().asDiagonal() * xx(of, of) * scale.cwiseInverse().asDiagonal();
        const Eigen::VectorXd b = xy(of).cwiseQuotient(scale);
        Eigen::FullPivLU<Eigen::MatrixXd> solver(a);
        solver.setThreshold(1e-9);
        if (!solver.isInvertible()) continue;
        const Eigen::VectorXd c = solver.solve(b);
        const double gain = c.dot(2 * b - a * c);
        if ((c.array() < 0).any() || gain <= most * (1 + 1e-12)) continue;
        most = gain;
        best.fill(0);
        for (int i = 0; i < size; ++i) {
          best[static_cast<std::size_t>(of[static_cast<std::size_t>(i)])] = c[i] / scale[i];
        }
      }
    }
    return best;
  }
};

ScalingModel fit(std::span<const Point> points, std::int64_t micro_batch, double gradient_bytes,
                 const ScalingNetwork& probed) {
  std::array<Normal, kStepParts.size()> normals{};
  for (const Point& point : points) {
    const Terms x = terms(point.ranks, point.nodes, point.global_batch / micro_batch);
    for (std::size_t p = 0; p < normals.size(); ++p) normals[p].add(x[p], point.parts[p], point.step_seconds);
  }
  ScalingModel model{.micro_batch = micro_batch};
  for (std::size_t p = 0; p < normals.size(); ++p) model.coefficients[p] = normals[p].solution();
  std::int64_t most = 1;
  bool several = false;
  for (const Point& point : points) {
    most = std::max(most, (point.ranks + point.nodes - 1) / point.nodes);
    several = several || point.nodes > 1;
  }
  Coefficients& reduction = model.coefficients[kReduction];
  if (several) {
    model.ranks_per_node = most;
    if (reduction[kBytesBetween] > 0) {
      model.network = {reduction[kLatencyBetween] / 2, 2 * gradient_bytes / reduction[kBytesBetween]};
    }
  } else if (probed.known()) {
    model.ranks_per_node = most;
    model.network = probed;
    reduction[kLatencyBetween] = 2 * probed.latency;
    reduction[kBytesBetween] = 2 * gradient_bytes / probed.bandwidth;
  }
  return model;
}

}  // namespace

std::array<double, kStepParts.size()> ScalingModel::parts(std::int64_t ranks, std::int64_t nodes,
                                                          std::int64_t global_batch) const {
  const Terms x = terms(ranks, nodes, std::max<std::int64_t>(1, global_batch / micro_batch));
  std::array<double, kStepParts.size()> seconds{};
  for (std::size_t p = 0; p < seconds.size(); ++p) {
    for (std::size_t i = 0; i < kTerms; ++i) seconds[p] += coefficients[p][i] * x[p][i];
  }
  return seconds;
}

double ScalingModel::step_seconds(std::int64_t ranks, std::int64_t nodes, std::int64_t global_batch) const {
  double sum = 0;
  for (const double part : parts(ranks, nodes, global_batch)) sum += part;
  return sum;
}

ScalingFit fit_scaling(std::span<const ScalingSample> samples, const ScalingNetwork& probed) {
  ScalingFit result;
  std::set<std::int64_t> rank_counts;
  std::set<std::int64_t> micro_batches;
  for (const ScalingSample& sample : samples) {
    rank_counts.insert(sample.ranks);
    micro_batches.insert(sample.micro_batch);
  }
  if (micro_batches.size() != 1) {
    result.refusal =
        "its runs have micro-batches of different sizes, whose costs cannot be compared; fix --micro_batch";
    return result;
  }
  const std::vector<Point> points = points_of(samples);
  const double gradient_bytes = samples.front().gradient_bytes;
  result.model = fit(points, *micro_batches.begin(), gradient_bytes, probed);
  if (rank_counts.size() < kLeastRankCounts) {
    result.refusal = fmt::format(
        "it has {} number{} of ranks, and a law can be checked by leaving one out only with {} or more",
        rank_counts.size(), rank_counts.size() == 1 ? "" : "s", kLeastRankCounts);
    return result;
  }
  const ScalingFit::HeldOut* worst = nullptr;
  for (const std::int64_t ranks : rank_counts) {
    std::vector<Point> others;
    for (const Point& point : points) {
      if (point.ranks != ranks) others.push_back(point);
    }
    const ScalingModel model = fit(others, *micro_batches.begin(), gradient_bytes, probed);
    for (const Point& point : points) {
      if (point.ranks != ranks) continue;
      result.held_out.push_back({point.mode, ranks, point.step_seconds,
                                 model.step_seconds(ranks, point.nodes, point.global_batch)});
    }
  }
  for (const ScalingFit::HeldOut& held : result.held_out) {
    if (worst == nullptr || std::abs(held.error()) > std::abs(worst->error())) worst = &held;
  }
  result.worst_error = std::abs(worst->error());
  if (!(result.worst_error <= kMostError)) {
    result.refusal = fmt::format(
        "a law that has not seen {} ranks ({} scaling) misses them by {:.0f} % (at most {:.0f} %); measure "
        "on a "
        "quieter machine, more repeats, or more numbers of ranks",
        worst->ranks, to_string(worst->mode), 100 * worst->error(), 100 * kMostError);
  }
  return result;
}

std::vector<ScalingPrediction> predict(const ScalingModel& model, ScalingMode mode, std::int64_t base_ranks,
                                       std::int64_t first_ranks, std::int64_t global_batch) {
  const bool weak = mode == ScalingMode::weak;
  const auto batch_at = [&](std::int64_t ranks) { return weak ? global_batch * ranks : global_batch; };
  const double base = model.step_seconds(base_ranks, batch_at(base_ranks));
  std::vector<ScalingPrediction> predictions;
  for (std::int64_t ranks = first_ranks; ranks <= kMostRanks; ranks *= 2) {
    ScalingPrediction& p = predictions.emplace_back();
    p.ranks = ranks;
    p.nodes = model.nodes(ranks);
    const auto parts = model.parts(ranks, p.nodes, batch_at(ranks));
    p.step_seconds = model.step_seconds(ranks, batch_at(ranks));
    const double growth = static_cast<double>(ranks) / static_cast<double>(base_ranks);
    p.efficiency = base / p.step_seconds / (weak ? 1 : growth);
    std::size_t largest = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (i != kCompute && parts[i] > parts[largest]) largest = i;
    }
    const std::int64_t micro_batches = std::max<std::int64_t>(1, batch_at(ranks) / model.micro_batch);
    p.limit = std::string(kStepParts[largest]);
    if (largest == kReduction) {
      const Coefficients x = terms(ranks, p.nodes, 1)[kReduction];
      const Coefficients& c = model.coefficients[kReduction];
      std::size_t most = 0;
      for (std::size_t i = 1; i < x.size(); ++i) {
        if (c[i] * x[i] > c[most] * x[most]) most = i;
      }
      p.limit = fmt::format("reduction: {}", kReductionTerms[most]);
    }
    if (micro_batches < ranks) {
      p.limit = fmt::format("ranks without a micro-batch, from {} on", micro_batches + 1);
    } else if (parts[kCompute] > kGoodShare * p.step_seconds) {
      p.limit = "compute";
    }
    // The share of compute grows with the micro-batches of a rank.
    constexpr std::int64_t kMost = std::int64_t{1} << 30;
    for (std::int64_t most = 1; most < kMost; most = most + most / 8 + 1) {
      const std::int64_t batch = most * ranks * model.micro_batch;
      if (model.parts(ranks, p.nodes, batch)[kCompute] >= kGoodShare * model.step_seconds(ranks, batch)) {
        p.batch = batch;
        break;
      }
    }
  }
  return predictions;
}

}  // namespace lockstep
