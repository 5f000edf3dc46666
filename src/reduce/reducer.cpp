#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/reduce/reducer.hpp>
#include <lockstep/state/arena.hpp>

#include "canonical_reducer.hpp"
#include "mpi_reducer.hpp"

namespace lockstep {

std::unique_ptr<Reducer> make_reducer(ReductionKind kind, const Topology& topology, std::size_t elements,
                                      std::int64_t micro_batches, const ReducerOptions& options) {
  if (elements % kArenaAlignment != 0) throw InternalError("gradient arenas come in whole cache lines");
  if (micro_batches < 1) {
    throw UsageError(fmt::format("a step needs at least one micro-batch ({} given)", micro_batches));
  }
  if (options.shard && kind == ReductionKind::mpi) {
    throw UsageError("a sharded optimizer needs the canonical reduction; use that, or do not shard");
  }
  if (options.shard && options.parameters.size() != elements) {
    throw UsageError(fmt::format("a sharded optimizer needs the parameters ({} elements given, {} to update)",
                                 options.parameters.size(), elements));
  }
  if (!options.residual.empty() && kind == ReductionKind::mpi) {
    throw UsageError("gradients travel as bf16 in the canonical reduction alone; use that, or f32");
  }
  if (!options.residual.empty() && options.residual.size() != elements) {
    throw UsageError(fmt::format("bf16 gradients need a residual of {} elements ({} given)", elements,
                                 options.residual.size()));
  }
  if (options.values < kMicroBatchValues) throw InternalError("micro-batches have values of their own");
  if (kind == ReductionKind::mpi) {
    return std::make_unique<MpiReducer>(topology, elements, micro_batches, options.values);
  }
  return std::make_unique<CanonicalReducer>(topology, elements, micro_batches, options);
}

}  // namespace lockstep
