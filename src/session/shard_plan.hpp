#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <lockstep/checkpoint/shards.hpp>
#include <lockstep/reduce/topology.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

/// Who writes which shard of a checkpoint.
struct ShardPlan {
  CutState cut;
  std::optional<std::size_t> mine;  ///< the shard of this rank
};

/// Every node writes its part of the parameters and slots (see shard_of_node), by as many of its ranks as
/// give shards of about `shard_bytes`, at least one. Local; the same on all ranks but for `mine` and where
/// entries point. nullopt where a state has nothing to deal out.
std::optional<ShardPlan> plan_shards(const Topology& topology, const State& state, std::uint64_t shard_bytes);

}  // namespace lockstep
