#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <lockstep/reduce/reducer.hpp>

namespace lockstep {

/// The canonical sum. Inside a node every rank adds its slice of everybody's partial sums straight from their
/// memory, in a shared window. Between nodes, each slice goes round the ranks that own it on each node: every
/// one of them collects a part of all partial sums, adds it up along the tree, and sends the sum back to the
/// others.
class CanonicalReducer final : public Reducer {
 public:
  CanonicalReducer(const Topology& topology, std::size_t elements, std::int64_t micro_batches);

  std::string_view name() const override { return "canonical"; }
  MicroBatchRange micro_batches() const override { return range_; }
  std::span<float> begin_micro_batch() override;
  void end_micro_batch() override;
  Tally reduce(Tally ballot) override;
  Tally exchange(Tally ballot) override;
  ElementRange slice() const override {
    return {std::min(slice_.first, elements_),
            std::min(slice_.last, elements_)};  // without the values behind
  }
  std::span<const float> sum() const override { return {sum_, elements_ + kMicroBatchValues}; }
  void finish() override;
  const WaitHistory& waits() const override { return waits_; }
  int gradient_arenas() const override { return buffers_; }

 private:
  /// The head of each rank's region of the window. Each word is written by its owner alone; a cache line
  /// each, so that a rank that waits for one does not slow down the writing of another.
  struct Control {
    alignas(64) std::atomic<std::uint64_t> arrived;  ///< ballots and partial sums of this operation are there
    alignas(64) std::atomic<std::uint64_t> tallied;  ///< local rank 0: the tally over nodes is there
    alignas(64)
        std::atomic<std::uint64_t> finished;  ///< this rank no longer needs others' parts of this operation
    alignas(64) std::atomic<std::uint64_t> released;  ///< this rank no longer reads the sum
    alignas(64) std::atomic<std::uint64_t> begun;  ///< micro-batches begun since the last sum: for messages
    alignas(64) Tally ballots[2];  ///< of odd and even operations: ranks are at most one apart
    Tally totals[2];
  };

  Control& control(int local_rank) const { return *controls_[static_cast<std::size_t>(local_rank)]; }
  float* buffer(int local_rank, int index) const;
  void release();
  template <class Word>
  Seconds wait_for_node(std::string_view what, Word word, std::uint64_t value) const;
  Seconds wait_for_tally() const;
  Seconds wait_for_node_at(Request& request, std::string_view what, int node) const;
  std::string whereabouts(int local_rank) const;
  Tally exchange_ballots(const Tally& mine);
  Tally complete(const Tally& of_node);
  void run_program(const CombineProgram& program, float* result);
  Tally tally_node() const;
  Tally reduce_between_nodes(const Tally& of_node);
  Tally exchange_between_nodes(const Tally& of_node);

  const Topology& topology_;
  Communicator other_nodes_;   ///< the column, more patient
  Communicator patient_node_;  ///< the node, as patient, for what comes from other nodes
  std::int64_t micro_batches_;
  std::size_t elements_;
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
  std::vector<const float*> slice_sources_;  ///< the same, at my slice
  std::vector<float*> node_results_;         ///< of each node program: its first source's memory
  float* sum_;                               ///< buffer 0 of the node's first rank

  // Between nodes.
  std::vector<std::size_t> node_partials_;  ///< how many partial sums each node is left with
  CombineProgram top_program_;              ///< from those to the root
  std::vector<ElementRange> parts_;         ///< of my slice, one a node
  std::vector<std::vector<std::byte>> outbox_;
  std::vector<std::vector<std::byte>> inbox_;
  std::vector<Request> requests_;

  std::size_t next_micro_batch_ = 0;
  std::uint64_t operation_ = 0;
  bool reading_sum_ = false;
  Seconds waited_{0};  ///< for others, in the operation before
  WaitHistory waits_;
};

}  // namespace lockstep
