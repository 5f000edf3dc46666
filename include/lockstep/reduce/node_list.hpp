#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

/// The nodes of a job in the order of their first ranks, kept in runs of nodes that are alike: as many ranks
/// each, first ranks at equal distances, and names that count ("node0017", "node0018"). So what a rank keeps
/// of them does not grow with the job, unless its nodes are all different.
class NodeList {
 public:
  /// Nodes one after the other.
  struct Run {
    std::int32_t nodes = 1;
    std::int32_t size = 1;         ///< ranks of each
    std::int32_t leader = 0;       ///< first rank of the first
    std::int32_t leader_step = 0;  ///< from one to the next
    std::int32_t digits = 0;       ///< of the number that counts, in the first's name; 0: names are equal
    std::int32_t digits_at = 0;    ///< where they begin in `host`
    std::int64_t number = 0;       ///< in the first's name
    std::int64_t number_step = 0;
    std::array<char, 64> host{};  ///< of the first, cut off behind 63 characters
  };

  NodeList() = default;

  /// One node.
  NodeList(int leader, int size, std::string_view host);

  /// As they were in another list.
  explicit NodeList(std::vector<Run> runs);

  /// Adds those of `behind`, whose first ranks are higher.
  void append(const NodeList& behind);

  std::span<const Run> runs() const noexcept { return runs_; }
  int nodes() const noexcept;
  int least_size() const noexcept;
  int size_of(int node) const;          ///< ranks of a node
  int start_of(int node) const;         ///< ranks of all nodes before it
  int leader_of(int node) const;        ///< its first rank
  int node_of(int leader) const;        ///< which node it is that has this first rank
  std::string host_of(int node) const;  ///< for messages

 private:
  struct Place {
    const Run* run;
    int index;  ///< in the run
    int start;  ///< ranks of all nodes before it
  };
  Place find(int node) const;

  std::vector<Run> runs_;
};

}  // namespace lockstep
