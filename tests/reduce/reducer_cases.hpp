#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/random.hpp>
#include <lockstep/reduce/reducer.hpp>

namespace lockstep::test {

/// Element `i` of the gradient of micro-batch `m` in step `t`: numbers of very different size, now and then a
/// special one, so that another order of additions gives other bits.
inline float gradient_value(std::int64_t t, std::int64_t m, std::size_t i, bool specials) {
  // splitmix64: cheap, since a test asks for a hundred million of them.
  std::uint64_t bits = (static_cast<std::uint64_t>(t) << 56) ^ (static_cast<std::uint64_t>(m) << 40) ^ i;
  bits += 0x9e3779b97f4a7c15;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111eb;
  bits ^= bits >> 31;
  if (specials) {
    switch (bits % 97) {
      case 0:
        return std::numeric_limits<float>::infinity();
      case 1:
        return std::numeric_limits<float>::quiet_NaN();
      case 2:
        return std::numeric_limits<float>::denorm_min() * 3;
      case 3:
        return -0.0F;
      default:
        break;
    }
  }
  // A random sign and mantissa, and an exponent from -12 to 11.
  const auto exponent = static_cast<std::uint32_t>(115 + (bits >> 32) % 24);
  const auto rest = static_cast<std::uint32_t>(bits) & 0x807fffffU;
  return std::bit_cast<float>(rest | exponent << 23);
}

/// The canonical sum by its definition, one level of the tree after the other. Overwrites `level`.
inline float serial_canonical_sum(std::span<float> level) {
  std::size_t count = level.size();
  while (count > 1) {
    for (std::size_t i = 0; i + 1 < count; i += 2) level[i / 2] = level[i] + level[i + 1];
    if (count % 2 == 1) level[count / 2] = level[count - 1];
    count = (count + 1) / 2;
  }
  return level.front();
}

inline bool same_bits(float left, float right) {
  if (std::isnan(left) && std::isnan(right)) return true;
  return std::memcmp(&left, &right, sizeof left) == 0;
}

struct ReducerCase {
  std::size_t elements = 0;
  std::int64_t micro_batches = 1;
  int ranks_per_node = 0;
  int steps = 2;
  bool specials = false;
  ReducerOptions options = {};
  std::size_t layer = 0;  ///< above 0: gradients become ready from the end in pieces of this many elements
  bool apart = false;     ///< steps end with `complete_sum`, and nothing comes between them; not with shards
};

/// Runs some steps and compares every element on every rank with the serial sum. Returns the number of
/// differences, so that one check stands for a million elements.
inline std::int64_t differences(const Communicator& world, const ReducerCase& c) {
  const Topology topology(world, c.ranks_per_node);
  // One copy a node, which takes the sum's place where every rank has its shard of it alone.
  const std::size_t copied = c.options.shard && topology.node.rank() == 0 ? c.elements : 0;
  const auto memory = topology.node.share(copied * sizeof(float));
  const std::span parameters(reinterpret_cast<float*>(memory->region(0).data()),
                             c.options.shard ? c.elements : 0);
  ReducerOptions options = c.options;
  options.parameters = parameters;
  const auto reducer = make_reducer(ReductionKind::canonical, topology, c.elements, c.micro_batches, options);
  const ElementRange slice = reducer->slice();
  std::int64_t wrong = 0;
  for (std::int64_t t = 0; t < c.steps; ++t) {
    const auto range = reducer->micro_batches();
    for (std::int64_t m = range.first; m < range.last; ++m) {
      const auto gradient = reducer->begin_micro_batch();
      const std::size_t layer = c.layer == 0 ? c.elements : c.layer;
      for (std::size_t last = c.elements; last > 0;) {
        const std::size_t first = last - std::min(last, layer);
        for (std::size_t i = first; i < last; ++i) gradient[i] = gradient_value(t, m, i, c.specials);
        if (c.layer > 0) {
          reducer->gradient_ready(first);
          // Others get their turn between any two layers.
          int turns = 0;
          world.wait_until(
              "a turn", [&] { return turns++ > 1; }, [] { return std::string(); });
        }
        last = first;
      }
      for (std::size_t i = c.elements; i < gradient.size(); ++i) {
        gradient[i] = static_cast<float>(m + static_cast<std::int64_t>(i - c.elements) % 97);
      }
      reducer->end_micro_batch();
    }
    Tally ballot(world.rank());
    if (world.rank() == world.size() - 1) ballot.say(Says::stop);
    if (world.is_chief()) ballot.set_timer(static_cast<int>(t % kMaxTimers));
    const Tally tally = reducer->reduce(ballot);
    if (tally.first_rank(Says::stop) != world.size() - 1 || !tally.timer(static_cast<int>(t % kMaxTimers)) ||
        tally.ranks() != world.size() || !tally.agrees()) {
      ++wrong;
    }
    if (c.options.shard) {
      for (std::size_t i = slice.first; i < slice.last; ++i) parameters[i] = reducer->sum()[i];
    }
    if (c.apart) {
      reducer->complete_sum();
    } else {
      reducer->finish();
    }
    const auto sum = reducer->sum();
    const auto elements = c.options.shard ? std::span<const float>(parameters) : sum;
    std::vector<float> leaves(static_cast<std::size_t>(c.micro_batches));
    for (std::size_t i = 0; i < c.elements; ++i) {
      for (std::int64_t m = 0; m < c.micro_batches; ++m) {
        leaves[static_cast<std::size_t>(m)] = gradient_value(t, m, i, c.specials);
      }
      if (!same_bits(elements[i], serial_canonical_sum(leaves))) ++wrong;
    }
    const auto m = static_cast<float>(c.micro_batches);
    for (std::size_t i = c.elements; i < sum.size(); ++i) {
      if (sum[i] != m * (m - 1) / 2 + m * static_cast<float>((i - c.elements) % 97)) ++wrong;
    }
    if (sum.size() != c.elements + c.options.values) ++wrong;
    if (c.apart) continue;
    // A ballot alone between steps disturbs nothing.
    const Tally alone = reducer->exchange(Tally(world.rank()));
    if (alone.ranks() != world.size() || alone.anyone_says(Says::stop)) ++wrong;
  }
  return wrong;
}

}  // namespace lockstep::test
