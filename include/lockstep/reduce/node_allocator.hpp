#pragma once

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/state/arena.hpp>

namespace lockstep {

/// Arenas that the ranks of a node share: one copy, which all of them see and may write. Who writes what, and
/// when, is for the caller to keep apart.
class NodeAllocator final : public ArenaAllocator {
 public:
  explicit NodeAllocator(Communicator node) : node_(std::move(node)) {}

  /// Collective over the node.
  Arena allocate(std::size_t elements) override;

 private:
  Communicator node_;
};

}  // namespace lockstep
