#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <lockstep/reduce/shared_numbers.hpp>

namespace lockstep {
namespace {

constexpr int kTag = 100;  // others of the reduction: see NodeExchange

}  // namespace

SharedNumbers::SharedNumbers(const Topology& topology, std::size_t count)
    : topology_(topology),
      count_(count),
      memory_(topology.node.share(sizeof(Control) +
                                  (topology.node.rank() == 0 ? 2 * count * sizeof(double) : 0))) {}

SharedNumbers::SharedNumbers(const Topology& topology, std::size_t count, ElementRange of_node)
    : SharedNumbers(topology, count) {
  between_nodes_ = topology.nodes > 1;
  if (between_nodes_ && topology.node.rank() == 0) of_nodes_ = topology.column.all_gather(of_node);
}

SharedNumbers::Control& SharedNumbers::control(int local_rank) const {
  return *reinterpret_cast<Control*>(memory_->region(local_rank).data());
}

// Two lists in turn: a rank may write for the next exchange while others still read of this one. It cannot be
// further ahead, for it then waits for them.
std::span<double> SharedNumbers::next() const noexcept {
  auto* lists = reinterpret_cast<double*>(memory_->region(0).data() + sizeof(Control));
  return {lists + (exchanges_ & 1) * count_, count_};
}

std::span<const double> SharedNumbers::exchange(const std::function<bool()>& anyone_left) {
  const auto numbers = next();
  const Communicator& node = topology_.node;
  ++exchanges_;
  control(node.rank()).arrived.store(exchanges_, std::memory_order_release);
  int come = 0;  // all before it have
  const auto all_come = [&] {
    while (come < node.size() && control(come).arrived.load(std::memory_order_acquire) >= exchanges_) ++come;
    return come == node.size();
  };
  node.wait_until(
      "all ranks of the node to add up their parts of norms", [&] { return all_come() || anyone_left(); },
      [&] {
        std::vector<int> missing;
        for (int local = come; local < node.size(); ++local) {
          if (control(local).arrived.load(std::memory_order_acquire) < exchanges_) {
            missing.push_back(topology_.node_ranks[static_cast<std::size_t>(local)]);
          }
        }
        return "ranks " + to_string_ranks(missing);
      });
  if (!between_nodes_) return numbers;
  if (node.rank() == 0) {
    exchange_between_nodes(numbers);
    control(0).complete.store(exchanges_, std::memory_order_release);
  }
  node.wait_until(
      "the parts of norms of other nodes",
      [&] { return control(0).complete.load(std::memory_order_acquire) >= exchanges_ || anyone_left(); },
      [&] { return fmt::format("rank {}, or another node", topology_.node_ranks.front()); });
  return numbers;
}

void SharedNumbers::exchange_between_nodes(std::span<double> numbers) {
  const Communicator& column = topology_.column;
  const auto of_node = [&](std::size_t n) {
    return numbers.subspan(of_nodes_[n].first, of_nodes_[n].size());
  };
  const auto me = static_cast<std::size_t>(topology_.my_node);
  for (std::size_t n = 0; n < of_nodes_.size(); ++n) {
    if (n == me) continue;
    const int node = static_cast<int>(n);
    requests_.push_back(column.receive(std::as_writable_bytes(of_node(n)), node, kTag));
    requests_.push_back(column.send(std::as_bytes(of_node(me)), node, kTag));
  }
  column.wait_until(
      "the parts of norms of other nodes",
      [&] { return std::ranges::all_of(requests_, [&](Request& request) { return column.test(request); }); },
      [&] {
        std::string missing;
        for (std::size_t n = 0; n < of_nodes_.size(); ++n) {
          const std::size_t pair = n < me ? n : n - 1;
          if (n == me || (requests_[2 * pair].done && requests_[2 * pair + 1].done)) continue;
          missing += fmt::format("{}the node of rank {}, {}", missing.empty() ? "" : ", ",
                                 topology_.all_nodes.leader_of(static_cast<int>(n)),
                                 topology_.all_nodes.host_of(static_cast<int>(n)));
        }
        return missing;
      });
  requests_.clear();
}

}  // namespace lockstep
