#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/reduce/canonical_tree.hpp>
#include <lockstep/reduce/reducer.hpp>
#include <lockstep/reduce/tally.hpp>
#include <lockstep/reduce/topology.hpp>

namespace lockstep {

/// How a sum between nodes is cut up. The same on all ranks; no bit of the sum depends on it.
struct ExchangePlan {
  bool doubling = false;  ///< all in log2(nodes) rounds of one message, for small arenas; else in buckets
  bool halving = false;   ///< buckets in 2 log2(nodes) rounds; else each node sends to each other
  bool shard = false;     ///< each rank gets the sum of its shard alone
  std::span<float> residual = {};     ///< not empty: what travels is rounded to bf16; see ReducerOptions
  std::vector<ElementRange> buckets;  ///< from the end of the arena to its start, as backward finishes it
};

/// Measures the network between nodes where that matters, and decides. Collective over `topology.world`.
ExchangePlan plan_exchange(const Topology& topology, std::size_t elements, const ReducerOptions& options);

/// Part `index` of `parts` of `whole`, as even as can be in multiples of `grain`.
ElementRange part_of(ElementRange whole, int index, int parts, std::size_t grain);

/// The sum between nodes, for the ranks with one place on each node (a column): each takes care of its part
/// of every bucket. Every node has some partial sums that are neighbours in the canonical tree; together they
/// add up to the root.
///
/// In buckets: a node sends each other node its part of the partial sums, adds up the part that is its own
/// along the tree, and sends the sum back to the others: every element crosses the network as seldom as can
/// be. Doubling: neighbours swap all that they have and add it up, then neighbours of pairs, and so on: as
/// few messages one after the other as can be.
///
/// Buckets by halving: neighbours swap halves of what they have and add up the half that they keep, then
/// neighbours of pairs, and so on; then the same backwards, with the sums. As many bytes, in as many messages
/// as there are rounds.
///
/// Rounded: a node sends the others their part of its whole sum as bf16, and the sum back as bf16 again. What
/// rounding costs is added to the same element in the next step: `residual` holds, in a part of another node,
/// what it has cost to send it, and in a part of this node's own, what it has cost to send its sum. Nothing
/// is rounded twice, and all nodes end with the same sum. An operation leaves the residual as it is until
/// `keep_residual`: a step may still be dropped when all have heard the tally.
///
/// The ballots of a node travel with its last bucket. A node whose ranks only have ballots sends them in
/// messages of the same tags without values; when it hears that others sum, it takes part in their exchange
/// with whatever lies in its memory. So all nodes come to the same tally, whatever each of them called.
class NodeExchange {
 public:
  /// Local. `column` may be more patient than the topology's. `partials` are this node's partial sums and
  /// `sum` where the sum goes, all of them arenas of `elements` and, behind them, `values` floats, which the
  /// first column takes care of; `sum` may be one of `partials`.
  NodeExchange(const Topology& topology, Communicator column, std::int64_t micro_batches,
               std::size_t elements, std::size_t values, std::vector<float*> partials, float* sum,
               const ExchangePlan& plan);

  /// What this rank sends or adds up of a bucket, one range a node.
  std::span<const ElementRange> pieces(std::size_t bucket) const { return buckets_[bucket].pieces; }

  /// Sends this node's partial sums of a bucket, which are final in `pieces`. Every bucket but the last, in
  /// their order. Of a few at a time only, so that what comes in needs little memory: the others leave in
  /// `poll`, when their turn comes. Local.
  void start(std::size_t bucket);

  /// Moves on what was started. Local; does not wait.
  void poll();

  /// Ends the operation. `of_node` is what the ranks of the node say together. If any of them sums, all
  /// buckets but the last were started and the partial sums are final. Collective over the column. Returns
  /// what all ranks of all nodes say.
  Tally complete(const Tally& of_node);

  /// What the last operation's rounding has cost is the residual now: its sum is used. Local.
  void keep_residual();

  /// How long the last `complete` waited for other nodes' ballots. Local.
  Seconds waited() const { return waited_; }

  /// Sends this rank's shard of `arena` to the column, and receives all others. Collective over the column.
  void spread_shards(std::span<float> arena);

  /// Brings the shards of `arena` together on the first node. Collective over the column.
  void gather_shards(std::span<float> arena);

  /// Brings `arenas[n]` of each node n to the first. For one column of ranks; collective over it.
  void gather_nodes(std::span<const std::span<float>> arenas);

  /// Memory for messages, in bytes. Local.
  std::size_t bytes() const;

 private:
  struct Bucket {
    std::vector<ElementRange> pieces;
    std::vector<std::span<float>> next_residuals;  ///< of each piece, where it is rounded; else empty
    std::vector<Request> requests;
    std::size_t done = 0;  ///< requests that are
    enum class State { idle, collecting, summed, spreading, done } state = State::idle;

    // By halving.
    std::size_t step = 0;              ///< round, there and back
    ElementRange range;                ///< what I have of it
    ElementRange kept;                 ///< and keep after this round
    std::vector<ElementRange> before;  ///< what I had before each swap
    std::size_t partials = 0;          ///< that I have
  };
  /// By halving, of a bucket under way: its partial sums, one after the other.
  struct Lane {
    std::vector<float> held;
    std::vector<float> next;
    std::vector<std::byte> out;
    std::vector<std::byte> in;
  };
  using Inbox = std::vector<std::vector<float>>;  ///< of each node: its partial sums of my piece of a bucket
  using Halves = std::vector<std::uint16_t>;

  /// The same where it is rounded.
  struct RoundedBoxes {
    std::vector<Halves> inbox;   ///< of each node: its sum of my piece
    std::vector<Halves> outbox;  ///< of each node: my sum of its piece, and later the sum of all
    Halves sum;                  ///< of my piece
  };
  struct Round {
    int partner = 0;
    bool sends = false;
    bool receives = false;
    bool replaces = false;      ///< what is received is the root already
    bool theirs_first = false;  ///< the partner's micro-batches come before mine
    std::size_t theirs = 0;     ///< partial sums that it sends
    std::vector<CombineProgram> programs;
  };

  std::size_t message_bytes(std::size_t partials, std::size_t elements) const;
  float* elements_in(std::vector<std::byte>& message, std::size_t partials) const;
  std::span<std::uint16_t> halves_in(std::vector<std::byte>& message, std::size_t partials,
                                     std::size_t elements) const;
  void plan_residuals();
  /// What the ranks of nodes first ... last - 1 own.
  MicroBatchRange owned_by(std::int64_t micro_batches, int first, int last) const;
  void plan_rounds(std::int64_t micro_batches);
  void post_send(std::span<const std::byte> bytes, int node, int tag, std::vector<Request>& requests);
  void post_receive(std::span<std::byte> bytes, int node, int tag, std::vector<Request>& requests);
  bool all_done(Bucket& bucket);
  bool all_done(std::vector<Request>& requests);
  void post(std::size_t index);
  void advance(std::size_t index);
  void combine(const Bucket& bucket);
  void spread(std::size_t index);
  RoundedBoxes& boxes(std::size_t index);
  std::span<const float> node_sum(std::size_t first, std::size_t count);
  void round_part(std::size_t index, std::size_t node, std::span<std::uint16_t> halves);
  void combine_rounded(std::size_t index);
  void unpack_sums(std::size_t index);
  template <class Ready, class Misses>
  Seconds wait_until(std::string_view what, Ready ready, Misses misses);
  Tally complete_buckets(const Tally& of_node);
  Tally complete_rounds(const Tally& of_node);
  Tally complete_halving(const Tally& of_node);
  void begin_halving(std::size_t index);
  void post_step(std::size_t index);
  void end_step(std::size_t index);
  void add_up(std::size_t index, const Round& round);
  void hear(const Tally& theirs, const Round& round);
  void make_lanes(std::size_t most);
  const Round& round_of(std::size_t step) const;
  Lane& lane(std::size_t index);
  bool is_last(std::size_t index) const { return index + 1 == buckets_.size(); }

  Communicator column_;
  const Topology& topology_;
  Seconds waited_{0};
  std::size_t me_;
  std::size_t elements_;
  std::size_t values_;  ///< behind them; 0 but in the first column
  bool shard_;
  std::vector<float*> partials_;
  float* sum_;
  std::vector<std::size_t> partials_of_;  ///< number of partial sums of each node
  CombineProgram top_program_;            ///< from those of all nodes to the root
  std::vector<const float*> sources_;
  std::vector<Bucket> buckets_;
  std::vector<Inbox> inboxes_;  ///< used in turns
  std::span<float> residual_;   ///< not empty: rounded
  std::vector<float>
      next_residual_;  ///< of my pieces of all buckets, when the operation under way is through
  std::vector<RoundedBoxes> rounded_;  ///< used in turns; behind them that of the last bucket
  std::vector<float> block_;           ///< of this node's sum, before it is rounded
  std::size_t started_ = 0;
  std::size_t posted_ = 0;   ///< those of them that have left
  std::size_t settled_ = 0;  ///< all buckets before it are through
  std::vector<ElementRange> shards_;
  std::vector<Request> requests_;

  // The last bucket with the ballots, or everything where doubling: to and from each node.
  std::vector<std::vector<std::byte>> outbox_;
  std::vector<std::vector<std::byte>> inbox_;
  std::vector<Round> rounds_;
  std::vector<float> held_;  ///< doubling: the partial sums so far
  std::vector<float> next_;

  // By halving.
  bool halving_ = false;
  std::size_t in_flight_ = 0;  ///< buckets beside the last
  std::size_t there_ = 0;      ///< rounds of sums
  std::size_t swaps_ = 0;      ///< of those, and rounds back
  std::size_t steps_ = 0;      ///< all of them
  std::vector<Lane> lanes_;    ///< used in turns; behind them that of the last bucket
  Tally total_;                ///< of the nodes that I have heard of
};

}  // namespace lockstep
