#include <algorithm>
#include <exception>
#include <numeric>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/reduce/canonical_tree.hpp>
#include <lockstep/train/evaluator.hpp>

namespace lockstep {

Evaluation evaluate(const Communicator& comm, const Sequential& model, const Kernels& kernels,
                    const Dataset& dataset, std::int64_t micro_batch) {
  if (micro_batch < 1) throw UsageError(fmt::format("micro_batch is {}; give at least 1", micro_batch));
  if (dataset.size() < 1) throw DataError("there are no samples to evaluate; give a dataset that has some");
  const std::int64_t pieces = (dataset.size() + micro_batch - 1) / micro_batch;
  const MicroBatchRange owned = owned_range(pieces, comm.rank(), comm.size());
  std::exception_ptr failure;
  std::int64_t correct = 0;
  std::vector<float> losses(static_cast<std::size_t>(pieces), 0.0F);
  try {
    Workspace workspace = model.workspace(kernels, micro_batch);
    std::vector<std::int64_t> indices(static_cast<std::size_t>(micro_batch));
    std::vector<float> inputs(indices.size() * static_cast<std::size_t>(dataset.sample_elements()));
    const auto labels_each = static_cast<std::size_t>(dataset.labels_per_sample());
    std::vector<std::int32_t> labels(indices.size() * labels_each);
    for (std::int64_t piece = owned.first; piece < owned.last; ++piece) {
      const std::int64_t first = piece * micro_batch;
      const auto count = static_cast<std::size_t>(std::min(micro_batch, dataset.size() - first));
      const auto these = std::span(indices).first(count);
      std::iota(these.begin(), these.end(), first);
      const auto samples =
          std::span(inputs).first(count * static_cast<std::size_t>(dataset.sample_elements()));
      const auto answers = std::span(labels).first(count * labels_each);
      dataset.fill(these, samples, answers);
      std::int64_t piece_correct = 0;
      model.evaluate(workspace, samples, std::span<const std::int32_t>(answers),
                     losses[static_cast<std::size_t>(piece)], piece_correct);
      correct += piece_correct;
    }
  } catch (...) {
    failure = std::current_exception();
  }
  throw_together(comm, failure);
  // Every piece has one owner; the sum is taken in the order of the pieces.
  double loss = 0;
  for (int rank = 0; rank < comm.size(); ++rank) {
    const MicroBatchRange theirs = owned_range(pieces, rank, comm.size());
    const auto part = std::span(losses).subspan(static_cast<std::size_t>(theirs.first),
                                                static_cast<std::size_t>(theirs.size()));
    comm.broadcast_values(part, rank);
    for (const float value : part) loss += value;
  }
  std::int64_t all_correct = 0;
  for (const std::int64_t part : comm.all_gather(correct)) all_correct += part;
  const auto samples = static_cast<double>(dataset.size());
  const auto judged = samples * static_cast<double>(dataset.labels_per_sample());
  return {loss / samples, static_cast<double>(all_correct) / judged, dataset.size()};
}

}  // namespace lockstep
