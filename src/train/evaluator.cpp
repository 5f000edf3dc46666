#include <algorithm>
#include <array>
#include <exception>
#include <numeric>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/mpi/fold_ranks.hpp>
#include <lockstep/reduce/canonical_tree.hpp>
#include <lockstep/train/evaluator.hpp>

namespace lockstep {
namespace {

/// What is known of one piece of the dataset, as numbers that ranks can send to each other.
struct Piece {
  double loss = 0;
  double squared_errors = 0;
  double absolute_errors = 0;
  double targets = 0;
  double squared_targets = 0;
};

}  // namespace

Evaluation evaluate(const Communicator& comm, const Sequential& model, const Kernels& kernels,
                    const Dataset& dataset, std::int64_t micro_batch) {
  if (micro_batch < 1) throw UsageError(fmt::format("micro_batch is {}; give at least 1", micro_batch));
  if (dataset.size() < 1) throw DataError("there are no samples to evaluate; give a dataset that has some");
  const std::int64_t pieces = (dataset.size() + micro_batch - 1) / micro_batch;
  const MicroBatchRange owned = owned_range(pieces, comm.rank(), comm.size());
  const bool labelled = dataset.target_elements() == 0;
  std::exception_ptr failure;
  std::int64_t right[] = {0, 0};  // first, and among the first few
  std::vector<Piece> found(static_cast<std::size_t>(pieces));
  try {
    Workspace workspace = model.workspace(kernels, micro_batch);
    std::vector<std::int64_t> indices(static_cast<std::size_t>(micro_batch));
    const auto room_for = [&](std::int64_t each) { return indices.size() * static_cast<std::size_t>(each); };
    std::vector<float> inputs(room_for(dataset.sample_elements()));
    std::vector<std::int32_t> labels(room_for(dataset.labels_per_sample()));
    std::vector<float> values(room_for(dataset.target_elements()));
    for (std::int64_t number = owned.first; number < owned.last; ++number) {
      const std::int64_t first = number * micro_batch;
      const auto count = static_cast<std::size_t>(std::min(micro_batch, dataset.size() - first));
      const auto these = std::span(indices).first(count);
      std::iota(these.begin(), these.end(), first);
      const auto part = [&](auto& all) { return std::span(all).first(all.size() / indices.size() * count); };
      dataset.fill(these, part(inputs), part(labels));
      Piece& piece = found[static_cast<std::size_t>(number)];
      const std::span<const float> outputs = model.predict(workspace, part(inputs));
      if (labelled) {
        const std::span<const std::int32_t> answers = part(labels);
        const Score score = model.judge(outputs, answers);
        piece.loss = score.loss_sum;
        right[0] += score.correct;
        right[1] += judge_classes(outputs, answers, Evaluation::kTopK).correct_top_k;
      } else {
        dataset.fill_targets(these, part(values));
        const std::span<const float> answers = part(values);
        const RegressionSums sums = judge_values(outputs, answers);
        piece = {model.judge(outputs, answers).loss_sum, sums.squared_errors, sums.absolute_errors,
                 sums.targets, sums.squared_targets};
      }
    }
  } catch (...) {
    failure = std::current_exception();
  }
  throw_together(comm, failure);
  // Every piece has one owner; the sums are taken in the order of the pieces.
  Piece all;
  for (int rank = 0; rank < comm.size(); ++rank) {
    const MicroBatchRange theirs = owned_range(pieces, rank, comm.size());
    const auto part = std::span(found).subspan(static_cast<std::size_t>(theirs.first),
                                               static_cast<std::size_t>(theirs.size()));
    comm.broadcast_values(part, rank);
    for (const Piece& piece : part) {
      all.loss += piece.loss;
      all.squared_errors += piece.squared_errors;
      all.absolute_errors += piece.absolute_errors;
      all.targets += piece.targets;
      all.squared_targets += piece.squared_targets;
    }
  }
  Evaluation result{.loss = all.loss / static_cast<double>(dataset.size()), .samples = dataset.size()};
  if (labelled) {
    const auto judged = static_cast<double>(dataset.size() * dataset.labels_per_sample());
    const auto sums =
        fold_ranks(comm, "all ranks to count what is right", std::array<std::int64_t, 2>{right[0], right[1]},
                   [](const auto& left, const auto& more) {
                     return std::array<std::int64_t, 2>{left[0] + more[0], left[1] + more[1]};
                   });
    result.accuracy = static_cast<double>(sums[0]) / judged;
    result.top_k_accuracy = static_cast<double>(sums[1]) / judged;
  } else {
    result.values = RegressionSums{.count = dataset.size() * dataset.target_elements(),
                                   .squared_errors = all.squared_errors,
                                   .absolute_errors = all.absolute_errors,
                                   .targets = all.targets,
                                   .squared_targets = all.squared_targets};
  }
  return result;
}

}  // namespace lockstep
