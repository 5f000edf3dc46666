#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include <lockstep/reduce/reducer.hpp>

#include "node_exchange.hpp"

namespace lockstep {

/// The canonical sum. Inside a node every rank adds its slice of everybody's partial sums straight from their
/// memory, in a shared window. Between nodes it is cut into buckets, of which each rank takes its part; see
/// NodeExchange. Buckets leave as soon as all ranks of the node have what goes into them.
///
/// A small sum on one node every rank adds up for itself, along the same tree, so that it waits once: for all
/// to have come. Nobody waits for others to have read. The buffers of odd and of even operations are apart,
/// and who writes into those of operation n has completed n - 1, so all others have come to n - 1, and none
/// of them reads anything of n - 2 any more.
class CanonicalReducer final : public Reducer {
 public:
  CanonicalReducer(const Topology& topology, std::size_t elements, std::int64_t micro_batches,
                   const ReducerOptions& options);

  std::string_view name() const override { return "canonical"; }
  std::string describe() const override;
  MicroBatchRange micro_batches() const override { return range_; }
  std::span<float> begin_micro_batch() override;
  void gradient_ready(std::size_t offset) override;
  void end_micro_batch() override;
  Tally reduce(Tally ballot) override;
  Tally exchange(Tally ballot) override;
  ElementRange slice() const override {
    return {std::min(slice_.first, elements_),
            std::min(slice_.last, elements_)};  // without the values behind
  }
  std::span<const float> sum() const override { return {sum_, elements_ + values_}; }
  void complete_sum() override;
  void finish() override;
  bool anyone_finished() const override;
  const WaitHistory& waits() const override { return waits_; }
  void gather(std::span<float> arena) override;
  void gather_nodes(std::span<const std::span<float>> arenas) override;
  std::size_t bytes() const override;
  bool sharded() const override { return plan_.shard && topology_.nodes > 1; }
  int gradient_arenas() const override { return buffers_; }

 private:
  /// The head of each rank's region of the window. Each word is written by its owner alone; a cache line
  /// each, so that a rank that waits for one does not slow down the writing of another.
  struct Control {
    alignas(64) std::atomic<std::uint64_t> arrived;  ///< ballots and partial sums of this operation are there
    alignas(64) std::atomic<std::uint64_t> ready;    ///< buckets whose partial sums are there; see ready_word
    alignas(64) std::atomic<std::uint64_t> summed;   ///< my part of the sum between nodes is there
    alignas(64)
        std::atomic<std::uint64_t> finished;  ///< this rank no longer needs others' parts of this operation
    std::atomic<std::uint64_t> updated;       ///< this rank has begun to finish this operation
    alignas(64) std::atomic<std::uint64_t> released;  ///< this rank no longer reads the sum
    alignas(64) std::atomic<std::uint64_t> begun;  ///< micro-batches begun since the last sum: for messages
    alignas(64) Tally ballots[2];  ///< of odd and even operations: ranks are at most one apart
    Tally totals[2];
  };

  Control& control(int local_rank) const { return *controls_[static_cast<std::size_t>(local_rank)]; }
  int node_size() const { return static_cast<int>(controls_.size()); }
  float* buffer(int local_rank, int index) const;
  /// From a buffer to the one that takes its place in this operation, in floats.
  std::size_t turn_of(std::uint64_t operation) const { return (operation & 1) * turn_; }
  void release();
  template <class Word>
  Seconds wait_for_node(const Communicator& node, std::string_view what, Word word, std::uint64_t value);
  std::string whereabouts(int local_rank) const;
  Tally exchange_ballots(Tally& ballot);
  Tally complete(const Tally& of_node);
  void run_program(const CombineProgram& program, float* result, ElementRange range);
  Tally tally_node() const;
  Tally complete_between_nodes(const Tally& of_node);

  /// What `ready` says when so many buckets of the operation under way are there.
  std::uint64_t ready_word(std::size_t buckets) const { return ((completed_ + 1) << 16) + buckets; }
  void fold(ElementRange range);
  void say_ready(std::size_t buckets);
  void start_next_bucket();
  void progress();

  const Topology& topology_;
  int local_;                  ///< this rank's place on the node
  Communicator patient_node_;  ///< the node, as patient, for what comes from other nodes
  std::int64_t micro_batches_;
  std::size_t elements_;
  std::size_t values_;  ///< behind the elements
  std::size_t padded_;  ///< elements and values, rounded up to whole cache lines
  MicroBatchRange range_;
  FoldPlan fold_;
  int buffers_;
  std::unique_ptr<SharedMemory> window_;
  std::vector<Control*> controls_;
  std::vector<std::vector<float*>> buffer_starts_;  ///< of each local rank

  ElementRange slice_;  ///< of the padded arena
  std::vector<CombineProgram>
      node_programs_;                 ///< from the node's partial sums to what the node cannot add further
  std::vector<float*> node_sources_;  ///< where the node's partial sums lie
  std::vector<const float*> range_sources_;  ///< the same, at the range being added
  std::vector<float*> node_results_;         ///< of each node program: its first source's memory
  float* sum_;                               ///< buffer 0 of the node's first rank; where small, my own
  bool small_ = false;                       ///< every rank adds up all of it
  std::size_t turn_ = 0;  ///< where small: from the buffers of even to those of odd operations

  // Between nodes.
  ExchangePlan plan_;
  std::unique_ptr<NodeExchange> exchange_;  ///< null on one node, and for ranks beyond the smallest node's
  std::span<float> parameters_;
  std::function<void()> before_spread_;
  std::size_t folded_from_;  ///< what of the last micro-batch is in the partial sums already
  std::size_t ready_ = 0;    ///< buckets that are, of this rank
  std::size_t started_ = 0;  ///< buckets that have left

  std::size_t next_micro_batch_ = 0;
  std::uint64_t operation_ = 0;
  std::uint64_t completed_ = 0;  ///< between nodes: the last operation that is through
  bool reading_sum_ = false;
  Seconds waited_{0};  ///< for others, in the operation before
  WaitHistory waits_;
};

}  // namespace lockstep
