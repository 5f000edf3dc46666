#pragma once

#include <vector>

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/reduce/node_list.hpp>

namespace lockstep {

/// How the ranks of a job sit on nodes. The same on all ranks, but for `node`, `column` and `my_*`.
///
/// Work is dealt out by position: ranks in the order of nodes, then of local ranks, so that the ranks of one
/// node own neighbouring micro-batches, whatever their numbers.
struct Topology {
  /// Collective: two splits, a gather inside nodes, and a fold of the list of nodes. `ranks_per_node` above 0
  /// cuts nodes to that size (for tests of several nodes on one machine).
  Topology(const Communicator& world, int ranks_per_node = 0);

  Communicator world;
  Communicator node;    ///< the ranks that share memory with this one
  Communicator column;  ///< the ranks with the same local rank, one a node; used by local ranks < columns
  int nodes = 1;        ///< number of nodes
  int my_node = 0;      ///< which one is this rank's
  int columns = 1;      ///< ranks of the smallest node: that many exchange between nodes
  NodeList all_nodes;   ///< `start_of` is the position of a node's first rank
  std::vector<int> node_ranks;  ///< rank in `world` of each local rank of this node
  int my_position = 0;
};

}  // namespace lockstep
