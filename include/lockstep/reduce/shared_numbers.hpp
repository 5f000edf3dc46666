#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <lockstep/reduce/topology.hpp>

namespace lockstep {

/// A list of numbers of which each rank of a node knows some and all need all: sums of squares over parts of
/// the arena, from which norms follow. In memory that the node shares; no message.
class SharedNumbers {
 public:
  /// Collective over the node. `topology` must outlive it.
  SharedNumbers(const Topology& topology, std::size_t count);

  /// Where this rank writes its numbers of the next exchange. Each place is written by one rank of the node.
  /// Local.
  std::span<double> next() const noexcept;

  /// Returns when all ranks of the node have come: what they wrote, until the exchange after the next.
  /// Collective over the node.
  std::span<const double> exchange();

 private:
  struct alignas(64) Control {
    std::atomic<std::uint64_t> arrived;
  };
  Control& control(int local_rank) const;

  const Topology& topology_;
  std::size_t count_;
  std::unique_ptr<SharedMemory> memory_;
  std::uint64_t exchanges_ = 0;
};

}  // namespace lockstep
