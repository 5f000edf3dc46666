#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include <fmt/format.h>

#include <lockstep/scaling/model.hpp>
#include <lockstep/scaling/statistics.hpp>

namespace lockstep {
namespace {

constexpr double kMostError = 0.1;
constexpr std::size_t kLeastRankCounts = 3;
constexpr std::int64_t kMostRanks = 8192;
constexpr double kGoodShare = 0.8;

using Terms = std::array<std::array<double, 2>, kStepParts.size()>;
constexpr auto kCompute = static_cast<std::size_t>(StepPart::compute);

/// What the coefficients of each part are multiplied by.
Terms terms(std::int64_t ranks, std::int64_t micro_batches) {
  const auto n = static_cast<double>(ranks);
  const auto most = static_cast<double>((micro_batches + ranks - 1) / ranks);
  const double rounds = std::log2(n);
  const double latest = std::sqrt(2 * std::log(n));
  return {{{1, most},
           {most, ranks > 1 ? most : 0},
           {rounds, (n - 1) / n},
           {latest, latest * most},
           {1, 1 / n},
           {1, 0},
           {1, rounds}}};
}

/// One number of ranks in one mode.
struct Point {
  ScalingMode mode = ScalingMode::strong;
  std::int64_t ranks = 1;
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

/// Two coefficients, neither negative, of least squares over rows (x0, x1, y), each divided by its scale.
struct Normal {
  double xx = 0;
  double xz = 0;
  double zz = 0;
  double xy = 0;
  double zy = 0;

  void add(const std::array<double, 2>& x, double y, double scale) {
    const double weight = 1 / (scale * scale);
    xx += weight * x[0] * x[0];
    xz += weight * x[0] * x[1];
    zz += weight * x[1] * x[1];
    xy += weight * x[0] * y;
    zy += weight * x[1] * y;
  }

  std::array<double, 2> solution() const {
    const double determinant = xx * zz - xz * xz;
    if (determinant > 1e-9 * xx * zz) {
      const std::array<double, 2> both{(xy * zz - zy * xz) / determinant, (zy * xx - xy * xz) / determinant};
      if (both[0] >= 0 && both[1] >= 0) return both;
    }
    // At the edge, the better of one term alone.
    const double first = xx > 0 ? std::max(0.0, xy / xx) : 0;
    const double second = zz > 0 ? std::max(0.0, zy / zz) : 0;
    const double gain_first = first * (2 * xy - first * xx);
    const double gain_second = second * (2 * zy - second * zz);
    return gain_first >= gain_second ? std::array{first, 0.0} : std::array{0.0, second};
  }
};

ScalingModel fit(std::span<const Point> points, std::int64_t micro_batch) {
  std::array<Normal, kStepParts.size()> normals{};
  for (const Point& point : points) {
    const Terms x = terms(point.ranks, point.global_batch / micro_batch);
    for (std::size_t p = 0; p < normals.size(); ++p) normals[p].add(x[p], point.parts[p], point.step_seconds);
  }
  ScalingModel model{.micro_batch = micro_batch};
  for (std::size_t p = 0; p < normals.size(); ++p) model.coefficients[p] = normals[p].solution();
  return model;
}

}  // namespace

std::array<double, kStepParts.size()> ScalingModel::parts(std::int64_t ranks,
                                                          std::int64_t global_batch) const {
  const Terms x = terms(ranks, std::max<std::int64_t>(1, global_batch / micro_batch));
  std::array<double, kStepParts.size()> seconds{};
  for (std::size_t p = 0; p < seconds.size(); ++p) {
    seconds[p] = coefficients[p][0] * x[p][0] + coefficients[p][1] * x[p][1];
  }
  return seconds;
}

double ScalingModel::step_seconds(std::int64_t ranks, std::int64_t global_batch) const {
  double sum = 0;
  for (const double part : parts(ranks, global_batch)) sum += part;
  return sum;
}

ScalingFit fit_scaling(std::span<const ScalingSample> samples) {
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
  result.model = fit(points, *micro_batches.begin());
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
    const ScalingModel model = fit(others, *micro_batches.begin());
    for (const Point& point : points) {
      if (point.ranks != ranks) continue;
      result.held_out.push_back(
          {point.mode, ranks, point.step_seconds, model.step_seconds(ranks, point.global_batch)});
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
    const auto parts = model.parts(ranks, batch_at(ranks));
    p.step_seconds = model.step_seconds(ranks, batch_at(ranks));
    const double growth = static_cast<double>(ranks) / static_cast<double>(base_ranks);
    p.efficiency = base / p.step_seconds / (weak ? 1 : growth);
    std::size_t largest = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (i != kCompute && parts[i] > parts[largest]) largest = i;
    }
    const std::int64_t micro_batches = std::max<std::int64_t>(1, batch_at(ranks) / model.micro_batch);
    p.limit = std::string(kStepParts[largest]);
    if (micro_batches < ranks) {
      p.limit = fmt::format("ranks without a micro-batch, from {} on", micro_batches + 1);
    } else if (parts[kCompute] > kGoodShare * p.step_seconds) {
      p.limit = "compute";
    }
    // The share of compute grows with the micro-batches of a rank.
    constexpr std::int64_t kMost = std::int64_t{1} << 30;
    for (std::int64_t most = 1; most < kMost; most = most + most / 8 + 1) {
      const std::int64_t batch = most * ranks * model.micro_batch;
      if (model.parts(ranks, batch)[kCompute] >= kGoodShare * model.step_seconds(ranks, batch)) {
        p.batch = batch;
        break;
      }
    }
  }
  return predictions;
}

}  // namespace lockstep
