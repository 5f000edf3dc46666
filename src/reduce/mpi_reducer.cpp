#include "mpi_reducer.hpp"

#include <algorithm>
#include <array>
#include <utility>

namespace lockstep {

/// Packs a ballot into floats and reads the sum of all ranks' floats back. A friend of Tally.
class MpiBallot {
 public:
  static constexpr std::size_t kFloats = kSays + kMaxTimers + 1 + kMaxValues + 3;

  static void pack(const Tally& ballot, std::span<float> out) {
    std::size_t at = 0;
    for (int i = 0; i < kSays; ++i)
      out[at++] = ballot.first_[static_cast<std::size_t>(i)] == Tally::kNobody ? 0 : 1;
    for (int bit = 0; bit < kMaxTimers; ++bit) out[at++] = ballot.timer(bit) ? 1 : 0;
    out[at++] = static_cast<float>(ballot.wait_sum_);
    for (const double value : ballot.values_) out[at++] = static_cast<float>(value);
    out[at++] = static_cast<float>(ballot.contributors_);
    out[at++] = static_cast<float>(ballot.micro_batches_);
    out[at++] = 1;  // this rank
  }

  static Tally unpack(std::span<const float> sum, const Tally& mine, const Communicator& world) {
    Tally tally = mine;
    std::size_t at = 0;
    bool anyone = false;
    for (int i = 0; i < kSays; ++i) anyone = sum[at++] != 0 || anyone;
    tally.timers_ = 0;
    for (int bit = 0; bit < kMaxTimers; ++bit) {
      if (sum[at++] != 0) tally.set_timer(bit);
    }
    tally.wait_sum_ = sum[at++];
    for (double& value : tally.values_) value = sum[at++];
    tally.contributors_ = static_cast<std::int32_t>(sum[at++]);
    tally.micro_batches_ = static_cast<std::int64_t>(sum[at++]);
    tally.ranks_ = static_cast<std::int32_t>(sum[at]);
    tally.wait_min_ = 0;
    tally.wait_min_rank_ = Tally::kNobody;
    if (!anyone) return tally;
    // All ranks see the same counts, so all come here.
    struct Words {
      std::array<std::int32_t, kSays> first;
      std::int32_t signal;
    };
    for (const Words& words : world.all_gather(Words{mine.first_, mine.signal_})) {
      for (std::size_t i = 0; i < kSays; ++i) tally.first_[i] = std::min(tally.first_[i], words.first[i]);
      tally.signal_ = std::max(tally.signal_, words.signal);
    }
    return tally;
  }
};

MpiReducer::MpiReducer(const Topology& topology, std::size_t elements, std::int64_t micro_batches)
    : topology_(topology),
      elements_(elements),
      range_(owned_range(micro_batches, topology.my_position, topology.world.size())),
      total_(PlainAllocator().allocate(elements + kMicroBatchValues + MpiBallot::kFloats)),
      next_(range_.size() > 1 ? PlainAllocator().allocate(elements + kMicroBatchValues) : Arena()) {}

std::span<float> MpiReducer::begin_micro_batch() {
  const auto values = (done_ == 0 ? total_ : next_).values().first(elements_ + kMicroBatchValues);
  std::fill(values.begin() + static_cast<std::ptrdiff_t>(elements_), values.end(), 0.0F);
  return values;
}

void MpiReducer::end_micro_batch() {
  if (done_++ > 0) add(total_.values().first(elements_ + kMicroBatchValues), next_.values());
}

Tally MpiReducer::reduce(Tally ballot) {
  constexpr std::size_t kPiece = std::size_t{1} << 28;  // MPI counts are ints
  if (done_ == 0)
    std::ranges::fill(total_.values(), 0.0F);  // no micro-batch is mine, or I failed before the first
  done_ = 0;
  const auto ballot_floats = total_.values().subspan(elements_ + kMicroBatchValues, MpiBallot::kFloats);
  ballot.set_wait(waited_.count(), topology_.my_node);
  waited_ = Seconds{0};
  MpiBallot::pack(ballot, ballot_floats);
  for (auto left = total_.values(); !left.empty();) {
    const auto piece = left.first(std::min(left.size(), kPiece));
    Request request = topology_.world.all_reduce_sum(piece);
    waited_ += topology_.world.wait(request, "the sum of gradients", "any other rank");
    left = left.subspan(piece.size());
  }
  waits_.add(waited_);
  return MpiBallot::unpack(ballot_floats, ballot, topology_.world);
}

/// The same operation as `reduce`, so that a rank that failed between steps meets the others whatever they
/// call.
Tally MpiReducer::exchange(Tally ballot) {
  done_ = 0;
  return reduce(ballot);
}

ElementRange MpiReducer::slice() const {
  // Every rank has the whole sum; where parameters are shared, each still updates its own part of them.
  const auto size = static_cast<std::size_t>(topology_.node.size());
  const auto local = static_cast<std::size_t>(topology_.node.rank());
  const std::size_t grains = (elements_ + 4095) / 4096;
  const auto at = [&](std::size_t i) { return std::min(grains * i / size * 4096, elements_); };
  return {at(local), at(local + 1)};
}

void MpiReducer::finish() {
  if (topology_.node.size() > 1) topology_.node.barrier("all ranks of the node to end the step");
}

}  // namespace lockstep
