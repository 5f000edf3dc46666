#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <lockstep/scaling/sample.hpp>

namespace lockstep {

/// What messages between nodes cost. 0: nobody knows.
struct ScalingNetwork {
  double latency = 0;    ///< seconds of a small message
  double bandwidth = 0;  ///< bytes a second
  bool known() const { return latency > 0 && bandwidth > 0; }
};

/// What a step of some training costs, as a law with few coefficients: each part of the step is a sum of
/// terms with coefficients that are not negative. With n ranks on N nodes of r, and m micro-batches on the
/// rank that has most:
///   data          1, m
///   compute       m, m of more than one rank (cores that share a memory)
///   reduction     log2 r, (r - 1) / r (inside nodes); log2 N, (N - 1) / N (between them)
///   imbalance     sqrt(2 ln n) (the latest of n), the same times m
///   update        1, 1 / n
///   save          1
///   other         1, log2 n
struct ScalingModel {
  static constexpr std::size_t kTerms = 4;

  std::int64_t micro_batch = 1;
  std::int64_t ranks_per_node = 0;  ///< 0: all ranks on one
  ScalingNetwork network = {};      ///< between nodes: as fitted, or as it was probed
  std::array<std::array<double, kTerms>, kStepParts.size()> coefficients{};

  std::int64_t nodes(std::int64_t ranks) const {
    return ranks_per_node == 0 ? 1 : (ranks + ranks_per_node - 1) / ranks_per_node;
  }

  /// Seconds of each part of a step. Local.
  std::array<double, kStepParts.size()> parts(std::int64_t ranks, std::int64_t nodes,
                                              std::int64_t global_batch) const;
  double step_seconds(std::int64_t ranks, std::int64_t nodes, std::int64_t global_batch) const;
  double step_seconds(std::int64_t ranks, std::int64_t global_batch) const {
    return step_seconds(ranks, nodes(ranks), global_batch);
  }
};

/// How well a law fits, seen from outside: each number of ranks is predicted from the others.
struct ScalingFit {
  struct HeldOut {
    ScalingMode mode = ScalingMode::strong;
    std::int64_t ranks = 1;
    double measured = 0;   ///< seconds a step
    double predicted = 0;  ///< by a law that has not seen this number of ranks
    double error() const { return predicted / measured - 1; }
  };

  ScalingModel model = {};
  std::vector<HeldOut> held_out = {};
  double worst_error = 0;
  std::string refusal = {};  ///< why nothing may be predicted; empty where it may
};

/// Fits the medians over repeats, by their relative errors. Refuses to predict from less than three numbers
/// of ranks, from samples of several micro-batch sizes, or where a number of ranks that was held out is
/// missed by more than 10 %.
///
/// Where all samples are of one node, what it costs to cross the network follows from `probed`, if that is
/// known: two messages for each doubling of nodes, and twice the gradient's bytes; nodes beyond the first
/// then have as many ranks as the largest sample.
ScalingFit fit_scaling(std::span<const ScalingSample> samples, const ScalingNetwork& probed = {});

struct ScalingPrediction {
  std::int64_t ranks = 1;
  double step_seconds = 0;
  double efficiency = 0;  ///< beside the smallest number of ranks that was measured, as in the tables
  std::int64_t nodes = 1;
  std::string limit = {};  ///< the part of the step that costs most of it, or what else does
  std::int64_t batch = 0;  ///< global batch from which on 80 % of a step is compute at so many ranks
};

/// From the largest number of ranks measured on, doubling, to 8,192; of one mode. `global_batch` is that of
/// the samples (weak: of a rank).
std::vector<ScalingPrediction> predict(const ScalingModel& model, ScalingMode mode, std::int64_t base_ranks,
                                       std::int64_t first_ranks, std::int64_t global_batch);

}  // namespace lockstep
