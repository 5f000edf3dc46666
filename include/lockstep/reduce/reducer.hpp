#pragma once

#include <cstdint>
#include <functional>
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

/// How gradients travel between nodes: as they are, or rounded, with half the bytes; see ReducerOptions.
enum class GradientDtype { f32, bf16 };

/// How the canonical sum crosses the network between nodes. No bit of a sum depends on it, unless it is
/// rounded.
struct ReducerOptions {
  std::size_t bucket_bytes = 0;  ///< of a bucket; 0: from a measurement of the network at the start
  /// Tests choose; automatic: from the same measurement.
  enum class Exchange { automatic, doubling, buckets, halving } exchange = Exchange::automatic;
  bool shard = false;  ///< every rank of every node updates its own part: `sum` is final in `slice` alone
  std::span<float> parameters = {};  ///< with `shard`: what `finish` brings together again on all nodes

  /// Floats behind the gradients of each micro-batch that are summed like them, but neither rounded nor
  /// sharded: all of their sum comes to every node. At least kMicroBatchValues.
  std::size_t values = kMicroBatchValues;

  /// Not empty: gradients travel between nodes as bf16, and what rounding costs is kept here, shared by the
  /// ranks of a node, and added in the next step. It changes in `finish` or `complete_sum`: not by a sum that
  /// nobody uses. The sum then depends on how ranks sit on nodes. `values` are not rounded.
  std::span<float> residual = {};

  /// With `shard`: called in `finish` by every rank that has a shard, once it has updated it and before the
  /// others get its parameters. So where `finish` has returned on any rank, it has on all of them. Collective
  /// over the column; may throw DeadlineExceeded.
  std::function<void()> before_spread = {};
};

/// Sums gradients over micro-batches and ranks, and carries the ballot.
///
/// One step of every rank:
///   for each owned micro-batch: write its gradient into `begin_micro_batch()`, then `end_micro_batch()`;
///   `tally = reduce(ballot)`; unless the tally says error: `slice()` of `sum()` is final;
///   read or use that slice;
///   `complete_sum()`: all of `sum()` is final; or `finish()`: that, and every rank of the node has come this
///   far.
/// A rank that fails in mid-step calls `reduce` with an error in its ballot at once; nobody then uses the
/// sum.
///
/// All ranks make one with the same arguments (collective); see each function.
class Reducer {
 public:
  virtual ~Reducer() = default;

  virtual std::string_view name() const = 0;

  /// One line for the start of a run: what goes where, and the memory that this rank keeps for it. Local.
  virtual std::string describe() const = 0;

  /// The micro-batches this rank computes in each step. Local.
  virtual MicroBatchRange micro_batches() const = 0;

  /// Where the next owned micro-batch's gradient goes: `elements` floats, all to be written but the padding,
  /// which must stay zero; then `values` floats (ReducerOptions), zeroed here. Local, but may wait for ranks
  /// of the node that still read the sum of the step before.
  virtual std::span<float> begin_micro_batch() = 0;

  /// The gradient of the micro-batch being written is final from `offset` on. A hint: in the last owned
  /// micro-batch, buckets that are ready everywhere on the node then leave for other nodes, and what is under
  /// way moves on. Local.
  virtual void gradient_ready(std::size_t offset) { static_cast<void>(offset); }

  /// Adds what was written to the partial sums. Local.
  virtual void end_micro_batch() = 0;

  /// Collective. `ballot` is the Tally of this rank; the result is the same on all ranks. Where some ranks
  /// reduce and others `exchange`, all get a tally that does not agree, and nobody a sum.
  virtual Tally reduce(Tally ballot) = 0;

  /// A ballot without gradients. Collective.
  virtual Tally exchange(Tally ballot) = 0;

  /// The elements that this rank updates where the ranks of a node share parameters; slices of a node (of all
  /// ranks, where optimizers are sharded) cover the arena once. They start at multiples of 4,096 elements.
  /// Local.
  virtual ElementRange slice() const = 0;

  /// The sum, padding included, then `values` floats. Until the next step begins. Local.
  virtual std::span<const float> sum() const = 0;

  /// Returns when all of `sum()` is final. At once where it is so already: small sums inside a node, and
  /// MPI's. Collective over the node. Instead of `finish`, where ranks have parameters of their own.
  virtual void complete_sum() = 0;

  /// Ends the step: returns when every rank of the node has called it. Collective over the node; no message
  /// between nodes, unless optimizers are sharded: then collective over all ranks, and the slices of
  /// `parameters` that other nodes have updated come in.
  virtual void finish() = 0;

  /// A rank of this node has called `finish` for the operation under way already. What ranks of a node
  /// exchange after the sum and before `finish`, that rank does not take part in. Local.
  virtual bool anyone_finished() const { return false; }

  /// How long this rank waited for others in its last steps; the next ballot carries the newest. Local.
  virtual const WaitHistory& waits() const = 0;

  /// Where optimizers are sharded: brings the slices of all ranks of `arena`, shared by the ranks of a node,
  /// together on the first node; elsewhere it does nothing. Collective.
  virtual void gather(std::span<float> arena) { static_cast<void>(arena); }

  /// Brings `arenas[n]` of each node n, shared by its ranks, to the first node. Collective.
  virtual void gather_nodes(std::span<const std::span<float>> arenas) { static_cast<void>(arenas); }

  /// Optimizers are sharded: `sum` is final in `slice` alone, and slices cover the arena over all ranks.
  /// Local.
  virtual bool sharded() const { return false; }

  /// Gradient arenas that this rank keeps. Local.
  virtual int gradient_arenas() const = 0;

  /// All memory that this rank keeps for gradients, in bytes: arenas and messages. Local.
  virtual std::size_t bytes() const = 0;
};

/// What of an arena of `elements` the ranks of node `node` own where optimizers are sharded. Starts at a
/// multiple of 4,096 elements. Local.
ElementRange shard_of_node(const Topology& topology, std::size_t elements, int node);

/// What of that the rank at `column` of the node owns; a shard. Local.
ElementRange shard_of(const Topology& topology, std::size_t elements, int node, int column);

/// Makes the reducer for gradients of `elements` floats (a multiple of kArenaAlignment; may be 0) summed over
/// `micro_batches`. Collective over `topology.world`. `topology` must outlive it. Throws UsageError for
/// options that do not fit together.
std::unique_ptr<Reducer> make_reducer(ReductionKind kind, const Topology& topology, std::size_t elements,
                                      std::int64_t micro_batches, const ReducerOptions& options = {});

}  // namespace lockstep
