#include "mpi_reducer.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

namespace lockstep {

namespace {

void combine(const std::byte* from, std::byte* into) {
  Tally left;
  Tally right;
  std::memcpy(&left, from, sizeof left);
  std::memcpy(&right, into, sizeof right);
  left.add(right);
  std::memcpy(into, &left, sizeof left);
}

}  // namespace

MpiReducer::MpiReducer(const Topology& topology, std::size_t elements, std::int64_t micro_batches,
                       std::size_t values)
    : topology_(topology),
      elements_(elements),
      with_values_(elements + values),
      range_(owned_range(micro_batches, topology.my_position, topology.world.size())),
      total_(PlainAllocator().allocate(with_values_)),
      next_(range_.size() > 1 ? PlainAllocator().allocate(with_values_) : Arena()) {}

std::string MpiReducer::describe() const {
  return fmt::format("MPI's sum over all ranks; {} gradient arenas ({:.1f} MiB) a rank", gradient_arenas(),
                     static_cast<double>(bytes()) / (1 << 20));
}

std::span<float> MpiReducer::begin_micro_batch() {
  const auto values = (done_ == 0 ? total_ : next_).values().first(with_values_);
  std::fill(values.begin() + static_cast<std::ptrdiff_t>(elements_), values.end(), 0.0F);
  return values;
}

void MpiReducer::end_micro_batch() {
  if (done_++ > 0) add(total_.values().first(with_values_), next_.values());
}

void MpiReducer::start_sum() {
  if (done_ == 0) {
    std::ranges::fill(total_.values(), 0.0F);  // no micro-batch is mine, or I failed before the first
  }
  topology_.world.all_reduce_sum(total_.values(), requests_);
}

void MpiReducer::start_ballot(Tally ballot) {
  ballot.set_wait(waited_.count(), topology_.my_node);
  waited_ = Seconds{0};
  tally_ = ballot;
  requests_.push_back(
      topology_.world.all_reduce_value(std::as_writable_bytes(std::span(&tally_, 1)), &combine));
}

void MpiReducer::wait_for_all(std::string_view what) {
  for (Request& request : requests_) waited_ += topology_.world.wait(request, what, "any other rank");
  requests_.clear();
}

Tally MpiReducer::reduce(Tally ballot) {
  ballot.set_elements(with_values_);
  start_ballot(ballot);
  start_sum();
  done_ = 0;
  wait_for_all("the sum of gradients");
  waits_.add(waited_);
  return tally_;
}

Tally MpiReducer::exchange(Tally ballot) {
  ballot.set_elements(0);
  start_ballot(ballot);
  done_ = 0;
  wait_for_all("the ballots of all ranks");
  if (tally_.elements() > 0) {
    // Others sum, and nobody will use it: they must not wait for this rank.
    start_sum();
    wait_for_all("the sum of gradients");
  }
  waits_.add(waited_);
  return tally_;
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
