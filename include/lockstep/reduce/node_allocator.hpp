#pragma once

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/reduce/topology.hpp>
#include <lockstep/state/arena.hpp>

namespace lockstep {

/// Arenas that the ranks of a node share: one copy, which all of them see and may write. Who writes what, and
/// when, is for the caller to keep apart.
class NodeAllocator final : public ArenaAllocator {
 public:
  explicit NodeAllocator(Communicator node) : node_(std::move(node)) {}

  /// What belongs to other nodes has addresses here, but no memory until somebody writes to it: their own
  /// arenas, and their parts of slots where optimizers are sharded (see shard_of_node). The chief's node has
  /// all of it: it writes the checkpoints. `topology` must outlive it.
  NodeAllocator(const Topology& topology, bool shard_slots)
      : node_(topology.node), topology_(&topology), shard_slots_(shard_slots) {}

  /// Collective over the node.
  Arena allocate(std::size_t elements) override;
  Arena allocate_slot(std::size_t elements) override;
  Arena allocate_for_node(std::size_t elements, int node) override;

 private:
  Arena share(std::size_t elements, FirstTouch touch);
  Arena share_part(std::size_t elements, ElementRange mine);

  Communicator node_;
  const Topology* topology_ = nullptr;
  bool shard_slots_ = false;
};

}  // namespace lockstep
