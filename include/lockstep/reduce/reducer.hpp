#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <lockstep/reduce/canonical_tree.hpp>
#include <lockstep/reduce/tally.hpp>
#include <lockstep/reduce/topology.hpp>
#include <lockstep/reduce/wait_history.hpp>
#include <lockstep/state/arena.hpp>

namespace lockstep {

/// Floats after the gradients of each micro-batch that are summed like them: the loss and whatever else
/// belongs to single samples.
inline constexpr std::size_t kMicroBatchValues = 16;

enum class ReductionKind { canonical, mpi };

/// Sums gradients over micro-batches and ranks, and carries the ballot.
///
/// One step of every rank:
///   for each owned micro-batch: write its gradient into `begin_micro_batch()`, then `end_micro_batch()`;
///   `tally = reduce(ballot)`; unless the tally says error: `slice()` of `sum()` is final;
///   read or use that slice; `finish()`: all of `sum()` is final and every rank of the node has come this
///   far.
/// A rank that fails in mid-step calls `reduce` with an error in its ballot at once; nobody then uses the
/// sum.
///
/// All ranks make one with the same arguments (collective); see each function.
class Reducer {
 public:
  virtual ~Reducer() = default;

  virtual std::string_view name() const = 0;

  /// The micro-batches this rank computes in each step. Local.
  virtual MicroBatchRange micro_batches() const = 0;

  /// Where the next owned micro-batch's gradient goes: `elements` floats, all to be written but the padding,
  /// which must stay zero; then kMicroBatchValues floats, zeroed here. Local, but may wait for ranks of the
  /// node that still read the sum of the step before.
  virtual std::span<float> begin_micro_batch() = 0;

  /// Adds what was written to the partial sums. Local.
  virtual void end_micro_batch() = 0;

  /// Collective. `ballot` is the Tally of this rank; the result is the same on all ranks.
  virtual Tally reduce(Tally ballot) = 0;

  /// A ballot without gradients. Collective.
  virtual Tally exchange(Tally ballot) = 0;

  /// The elements that this rank updates where the ranks of a node share parameters; slices of a node cover
  /// the arena once. Local.
  virtual ElementRange slice() const = 0;

  /// The sum, padding included, then kMicroBatchValues. Until the next step begins. Local.
  virtual std::span<const float> sum() const = 0;

  /// Ends the step: returns when every rank of the node has called it. Collective over the node; no message
  /// between nodes.
  virtual void finish() = 0;

  /// How long this rank waited for others in its last steps; the next ballot carries the newest. Local.
  virtual const WaitHistory& waits() const = 0;

  /// Gradient arenas that this rank keeps. Local.
  virtual int gradient_arenas() const = 0;
};

/// Makes the reducer for gradients of `elements` floats (a multiple of kArenaAlignment; may be 0) summed over
/// `micro_batches`. Collective over `topology.world`. `topology` must outlive it.
std::unique_ptr<Reducer> make_reducer(ReductionKind kind, const Topology& topology, std::size_t elements,
                                      std::int64_t micro_batches);

}  // namespace lockstep
