#pragma once

#include <cstdint>
#include <optional>

#include <lockstep/data/dataset.hpp>
#include <lockstep/mpi/communicator.hpp>
#include <lockstep/nn/kernels.hpp>
#include <lockstep/nn/metrics.hpp>
#include <lockstep/nn/sequential.hpp>

namespace lockstep {

struct Evaluation {
  double loss = 0;  ///< mean over the samples
  std::int64_t samples = 0;
  double accuracy = 0;        ///< share of the labels that the model gets right; 0 where there are none
  double top_k_accuracy = 0;  ///< of the labels among the kTopK largest outputs
  std::optional<RegressionSums> values = {};  ///< where the data has values: rmse, mae, r_squared

  static constexpr std::int64_t kTopK = 5;
};

/// Runs the model over a whole dataset. The ranks share the work; the result has the same bits on any number
/// of ranks, because the dataset is cut into the same pieces of `micro_batch` samples everywhere. Collective
/// over `comm`: a broadcast of each rank and two gathers. Throws on all ranks what any rank threw; UsageError
/// for a micro_batch below 1, DataError for a dataset without samples.
Evaluation evaluate(const Communicator& comm, const Sequential& model, const Kernels& kernels,
                    const Dataset& dataset, std::int64_t micro_batch);

}  // namespace lockstep
