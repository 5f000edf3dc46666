#pragma once

#include <span>
#include <vector>

#include <lockstep/reduce/reducer.hpp>
#include <lockstep/state/arena.hpp>

namespace lockstep {

/// Plain MPI_Iallreduce over each rank's own sum: for clusters whose network adds up by itself. The order of
/// the additions follows the number of ranks and the MPI library's choice, so promise P1 holds only on the
/// same layout.
///
/// The ballot is not a sum of floats: it travels in an operation of its own, started together with that of
/// the gradients.
class MpiReducer final : public Reducer {
 public:
  MpiReducer(const Topology& topology, std::size_t elements, std::int64_t micro_batches, std::size_t values);

  std::string_view name() const override { return "mpi"; }
  std::string describe() const override;
  MicroBatchRange micro_batches() const override { return range_; }
  std::span<float> begin_micro_batch() override;
  void end_micro_batch() override;
  Tally reduce(Tally ballot) override;
  Tally exchange(Tally ballot) override;
  ElementRange slice() const override;
  std::span<const float> sum() const override { return total_.values().first(with_values_); }
  void complete_sum() override {}
  void finish() override;
  const WaitHistory& waits() const override { return waits_; }
  int gradient_arenas() const override { return range_.size() > 1 ? 2 : 1; }
  std::size_t bytes() const override { return (total_.size() + next_.size()) * sizeof(float); }

 private:
  void start_sum();
  void start_ballot(Tally ballot);
  void wait_for_all(std::string_view what);

  const Topology& topology_;
  std::size_t elements_;
  std::size_t with_values_;
  MicroBatchRange range_;
  Arena total_;  ///< the running sum of my micro-batches, then of all ranks
  Arena next_;   ///< the micro-batch being computed, after the first
  std::int64_t done_ = 0;
  Seconds waited_{0};  ///< for the sum, in the operation before: the messages' own time included
  WaitHistory waits_;
  Tally tally_;  ///< the ballot of this rank, then of all
  std::vector<Request> requests_;
};

}  // namespace lockstep
