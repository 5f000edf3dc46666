#include <string>
#include <vector>

#include <lockstep/reduce/shared_numbers.hpp>

namespace lockstep {

SharedNumbers::SharedNumbers(const Topology& topology, std::size_t count)
    : topology_(topology),
      count_(count),
      memory_(topology.node.share(sizeof(Control) +
                                  (topology.node.rank() == 0 ? 2 * count * sizeof(double) : 0))) {}

SharedNumbers::Control& SharedNumbers::control(int local_rank) const {
  return *reinterpret_cast<Control*>(memory_->region(local_rank).data());
}

// Two lists in turn: a rank may write for the next exchange while others still read of this one. It cannot be
// further ahead, for it then waits for them.
std::span<double> SharedNumbers::next() const noexcept {
  auto* lists = reinterpret_cast<double*>(memory_->region(0).data() + sizeof(Control));
  return {lists + (exchanges_ & 1) * count_, count_};
}

std::span<const double> SharedNumbers::exchange() {
  const auto numbers = next();
  const Communicator& node = topology_.node;
  ++exchanges_;
  control(node.rank()).arrived.store(exchanges_, std::memory_order_release);
  int come = 0;  // all before it have
  node.wait_until(
      "all ranks of the node to add up their parts of norms",
      [&] {
        while (come < node.size() && control(come).arrived.load(std::memory_order_acquire) >= exchanges_)
          ++come;
        return come == node.size();
      },
      [&] {
        std::vector<int> missing;
        for (int local = come; local < node.size(); ++local) {
          if (control(local).arrived.load(std::memory_order_acquire) < exchanges_) {
            missing.push_back(topology_.node_ranks[static_cast<std::size_t>(local)]);
          }
        }
        return "ranks " + to_string_ranks(missing);
      });
  return numbers;
}

}  // namespace lockstep
