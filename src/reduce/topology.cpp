#include <utility>
#include <vector>

#include <lockstep/base/process.hpp>
#include <lockstep/mpi/fold_ranks.hpp>
#include <lockstep/reduce/topology.hpp>

namespace lockstep {

Topology::Topology(const Communicator& all, int ranks_per_node)
    : world(all), node(all.split_by_node(ranks_per_node)), column(all) {
  using Runs = std::vector<NodeList::Run>;
  const auto runs_of = [](const NodeList& list) { return Runs(list.runs().begin(), list.runs().end()); };
  node_ranks = node.all_gather(world.rank());
  Runs mine;
  if (node.rank() == 0) mine = runs_of({world.rank(), node.size(), SystemIdentity().host()});
  all_nodes = NodeList(
      fold_lists(world, "all ranks to say where they are", mine, [&](Runs& before, const Runs& behind) {
        NodeList both(std::move(before));
        both.append(NodeList(behind));
        before = runs_of(both);
      }));
  nodes = all_nodes.nodes();
  my_node = all_nodes.node_of(node_ranks.front());
  column = world.split(node.rank(), my_node);
  columns = all_nodes.least_size();
  my_position = all_nodes.start_of(my_node) + node.rank();
}

}  // namespace lockstep
