#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <string>
#include <utility>

#include <lockstep/base/process.hpp>
#include <lockstep/reduce/topology.hpp>

namespace lockstep {

Topology::Topology(const Communicator& all, int ranks_per_node)
    : world(all), node(all.split_by_node(ranks_per_node)), column(all) {
  struct Seat {
    int leader;
    int local;
    std::array<char, 56> host;
  };
  node_ranks = node.all_gather(world.rank());
  Seat seat{node_ranks.front(), node.rank(), {}};
  SystemIdentity().host().copy(seat.host.data(), seat.host.size() - 1);
  const auto seats = world.all_gather(seat);
  std::map<int, std::string> hosts;  // by the node's first rank
  for (const Seat& of_rank : seats) {
    if (of_rank.local == 0) hosts.emplace(of_rank.leader, of_rank.host.data());
  }
  std::vector<int> leaders;
  for (const auto& [leader, host] : hosts) {
    leaders.push_back(leader);
    node_hosts.push_back(host);
  }
  nodes = static_cast<int>(leaders.size());
  my_node = static_cast<int>(std::lower_bound(leaders.begin(), leaders.end(), node_ranks.front()) -
                             leaders.begin());
  int start = 0;
  for (const int leader : leaders) {
    const auto size = static_cast<int>(std::count_if(
        seats.begin(), seats.end(), [&](const Seat& of_rank) { return of_rank.leader == leader; }));
    node_sizes.push_back(size);
    node_starts.push_back(start);
    start += size;
  }
  column = world.split(node.rank(), my_node);
  node_leaders = std::move(leaders);
  columns = *std::min_element(node_sizes.begin(), node_sizes.end());
  my_position = node_starts[static_cast<std::size_t>(my_node)] + node.rank();
}

}  // namespace lockstep
