#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/mpi/simulated_world.hpp>
#include <lockstep/reduce/topology.hpp>

namespace lockstep {
namespace {

struct Node {
  int leader;
  int size;
  std::string host;
};

/// Joined as a tree would: halves first.
NodeList list_of(const std::vector<Node>& nodes, std::size_t first, std::size_t last) {
  if (last - first == 1) return {nodes[first].leader, nodes[first].size, nodes[first].host};
  const std::size_t middle = first + (last - first) / 2;
  NodeList list = list_of(nodes, first, middle);
  list.append(list_of(nodes, middle, last));
  return list;
}

/// All that a list says is as in `nodes`. Returns its number of runs.
std::size_t check(const std::vector<Node>& nodes) {
  const NodeList list = list_of(nodes, 0, nodes.size());
  CHECK(list.nodes() == static_cast<int>(nodes.size()));
  int start = 0;
  int least = nodes.front().size;
  for (int n = 0; n < list.nodes(); ++n) {
    const Node& node = nodes[static_cast<std::size_t>(n)];
    CHECK(list.leader_of(n) == node.leader);
    CHECK(list.size_of(n) == node.size);
    CHECK(list.start_of(n) == start);
    CHECK(list.host_of(n) == node.host.substr(0, 63));
    CHECK(list.node_of(node.leader) == n);
    start += node.size;
    least = std::min(least, node.size);
  }
  CHECK(list.least_size() == least);
  CHECK_THROWS_AS(list.host_of(list.nodes()), InternalError);
  return list.runs().size();
}

std::vector<Node> numbered(int nodes, int size, std::string_view format, int number, int step = 1) {
  std::vector<Node> list;
  for (int n = 0; n < nodes; ++n) {
    list.push_back({n * size, size, fmt::format(fmt::runtime(format), number + n * step)});
  }
  return list;
}

}  // namespace

TEST_CASE("nodes that are alike and whose names count are one run, however many they are") {
  for (const int nodes : {1, 2, 3, 7, 64, 1000, 4096}) {
    CAPTURE(nodes);
    CHECK(check(numbered(nodes, 4, "node{:04}", 1)) == 1);
    CHECK(check(numbered(nodes, 128, "nid{:06}-hsn0.cluster", 17)) <= 2);
    CHECK(check(numbered(nodes, 1, "same", 0)) == 1);
  }
  CHECK(check(numbered(200, 2, "n{}", 1)) == 1);    // n9, n10, n99, n100
  CHECK(check(numbered(40, 2, "n{}", 3, 7)) == 1);  // every seventh
}

TEST_CASE("nodes of several kinds are a run for each stretch, and nothing is lost where all differ") {
  auto nodes = numbered(10, 4, "a{:02}", 1);
  for (const Node& more : numbered(6, 8, "b{:02}", 3)) nodes.push_back({40 + more.leader, 8, more.host});
  nodes.push_back({88, 3, "b09"});
  CHECK(check(nodes) <= 4);

  const std::vector<std::string> names{"mars",
                                       "venus",
                                       "rack1node",
                                       "rack2node",
                                       "r1n1",
                                       "r1n2",
                                       "r2n1",
                                       "",
                                       "9",
                                       "09",
                                       "10",
                                       "9999999999999999999999",
                                       std::string(80, 'x'),
                                       "x1y"};
  nodes.clear();
  int leader = 0;
  for (std::size_t i = 0; i < 200; ++i) {
    const int size = 1 + static_cast<int>(i * i % 5);
    nodes.push_back({leader, size, names[i * 7 % names.size()] + (i % 3 == 0 ? std::to_string(i) : "")});
    leader += size;
  }
  CHECK(check(nodes) > 100);
  // Ranks dealt out in turns: first ranks follow each other.
  nodes.clear();
  for (int n = 0; n < 50; ++n) nodes.push_back({n, 6, fmt::format("c{}", 100 - n)});
  CHECK(check(nodes) <= 3);
}

TEST_CASE("a topology of simulated nodes says of every rank where it is") {
  for (const int ranks : {1, 2, 5, 12, 33}) {
    for (const int per_node : {0, 1, 2, 3, 5}) {
      CAPTURE(ranks);
      CAPTURE(per_node);
      SimulatedWorld{ranks, per_node, 3}.run([&](const Communicator& world) {
        const Topology topology(world);
        const int size = per_node == 0 ? ranks : per_node;
        CHECK(topology.nodes == (ranks + size - 1) / size);
        CHECK(topology.my_node == world.rank() / size);
        CHECK(topology.my_position == world.rank());
        CHECK(topology.columns == (ranks % size == 0 ? size : ranks % size));
        CHECK(topology.all_nodes.runs().size() <= 2);
        CHECK(topology.all_nodes.size_of(topology.my_node) == topology.node.size());
        for (int node = 0; node < topology.nodes; ++node)
          CHECK(topology.all_nodes.leader_of(node) == node * size);
        if (topology.node.rank() < topology.columns) CHECK(topology.column.rank() == topology.my_node);
      });
    }
  }
}

}  // namespace lockstep
