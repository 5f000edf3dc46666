#include "shard_plan.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

#include <lockstep/reduce/reducer.hpp>

namespace lockstep {
namespace {

constexpr std::size_t kGrain = 16;  // elements: a cache line belongs to one shard

std::uint64_t bytes_of(const std::vector<Entry>& entries) {
  std::uint64_t bytes = 0;
  for (const Entry& entry : entries) bytes += entry.bytes();
  return bytes;
}

}  // namespace

std::optional<ShardPlan> plan_shards(const Topology& topology, const State& state,
                                     std::uint64_t shard_bytes) {
  const std::uint64_t a_node = bytes_of(state.entries()) / static_cast<std::uint64_t>(topology.nodes);
  std::vector<ShardPart> parts;
  std::vector<int> positions;
  for (int node = 0; node < topology.nodes; ++node) {
    const auto n = static_cast<std::size_t>(node);
    const auto ranks = static_cast<std::uint64_t>(topology.all_nodes.size_of(node));
    const auto writers = static_cast<std::size_t>(
        std::clamp<std::uint64_t>(a_node / std::max<std::uint64_t>(shard_bytes, 1), 1, ranks));
    const ElementRange all = shard_of_node(topology, state.parameter_elements(), node);
    for (std::size_t w = 0; w < writers; ++w) {
      const auto cut = [&](std::size_t i) {
        return i == writers ? all.last : all.first + all.size() * i / writers / kGrain * kGrain;
      };
      ShardPart part{{cut(w), cut(w + 1)}};
      if (w == 0 && n < state.kept_arenas().size()) part.kept_arena = n;
      parts.push_back(part);
      positions.push_back(topology.all_nodes.start_of(node) + static_cast<int>(w));
    }
  }
  // The first is the chief's, which has attached memory, too; of the others only those that hold something.
  CutState cut = cut_into_shards(state, parts);
  for (std::size_t k = parts.size(); k-- > 0;) {
    if (!cut.shards[k].empty()) continue;
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(k));
    positions.erase(positions.begin() + static_cast<std::ptrdiff_t>(k));
  }
  if (parts.empty()) return std::nullopt;
  ShardPlan plan{cut_into_shards(state, parts), std::nullopt};
  const auto mine = std::ranges::find(positions, topology.my_position);
  if (mine != positions.end()) plan.mine = static_cast<std::size_t>(mine - positions.begin());
  return plan;
}

}  // namespace lockstep
