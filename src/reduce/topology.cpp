#include <algorithm>
#include <cstddef>

#include <lockstep/reduce/topology.hpp>

namespace lockstep {

Topology::Topology(const Communicator& all, int ranks_per_node)
    : world(all), node(all.split_by_node(ranks_per_node)), column(all) {
  struct Seat {
    int leader;
    int local;
  };
  node_ranks = node.all_gather(world.rank());
  const auto seats = world.all_gather(Seat{node_ranks.front(), node.rank()});
  std::vector<int> leaders;
  for (const Seat& seat : seats) {
    if (seat.local == 0) leaders.push_back(seat.leader);
  }
  std::sort(leaders.begin(), leaders.end());
  nodes = static_cast<int>(leaders.size());
  my_node = static_cast<int>(std::lower_bound(leaders.begin(), leaders.end(), node_ranks.front()) -
                             leaders.begin());
  int start = 0;
  for (const int leader : leaders) {
    const auto size = static_cast<int>(
        std::count_if(seats.begin(), seats.end(), [&](const Seat& seat) { return seat.leader == leader; }));
    node_sizes.push_back(size);
    node_starts.push_back(start);
    start += size;
  }
  column = world.split(node.rank(), my_node);
  columns = *std::min_element(node_sizes.begin(), node_sizes.end());
  my_position = node_starts[static_cast<std::size_t>(my_node)] + node.rank();
}

}  // namespace lockstep
