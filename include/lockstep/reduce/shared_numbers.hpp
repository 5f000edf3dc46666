#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include <lockstep/reduce/topology.hpp>
#include <lockstep/state/arena.hpp>

namespace lockstep {

/// A list of numbers of which each rank of a node knows some and all need all: sums of squares over parts of
/// the arena, from which norms follow. In memory that the node shares; messages only where each node knows a
/// part of them (sharded optimizers).
class SharedNumbers {
 public:
  /// Collective over the node. `topology` must outlive it.
  SharedNumbers(const Topology& topology, std::size_t count);

  /// The nodes know a part each: this one numbers `of_node`. Collective over all ranks.
  SharedNumbers(const Topology& topology, std::size_t count, ElementRange of_node);

  /// Where this rank writes its numbers of the next exchange. Each place is written by one rank of the node.
  /// Local.
  std::span<double> next() const noexcept;

  /// Returns when all ranks of the node have come: what they wrote, until the exchange after the next.
  /// Collective over the node, or over all ranks where each node knows a part.
  ///
  /// `anyone_left` (Local) says that a rank of the node will not come any more. Then the numbers are of no
  /// meaning, and whoever asked learns elsewhere why. The first rank of each node still has to come where
  /// each node knows a part.
  std::span<const double> exchange(const std::function<bool()>& anyone_left);

 private:
  struct alignas(64) Control {
    std::atomic<std::uint64_t> arrived;
    std::atomic<std::uint64_t> complete;  ///< of the node's first rank: the numbers of all nodes are there
  };
  void exchange_between_nodes(std::span<double> numbers);
  Control& control(int local_rank) const;

  const Topology& topology_;
  std::size_t count_;
  std::unique_ptr<SharedMemory> memory_;
  std::uint64_t exchanges_ = 0;
  bool between_nodes_ = false;
  std::vector<ElementRange> of_nodes_;  ///< on each node's first rank
  std::vector<Request> requests_;
};

}  // namespace lockstep
