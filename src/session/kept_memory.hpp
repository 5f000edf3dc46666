#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/reduce/node_list.hpp>
#include <lockstep/state/arena.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

struct SessionGround;

/// From where the values of one step come together.
struct KeptValues {
  struct Part {
    ElementRange range;   ///< of parameters and slots
    int rank = 0;         ///< who has it
    bool copied = false;  ///< of the node before
  };
  std::int64_t step = 0;
  std::uint64_t update = 0;  ///< the last that is in it
  int source = 0;            ///< the rank whose buffers, and values beside the arenas, are taken
  std::vector<Part> parts;
  bool goes_back = false;  ///< this rank brings the arenas of its node to that step
};

/// The arenas of a State beyond its life, and how far each rank that writes to them has come. Where ranks of
/// a node share arenas, they see this of each other, also of one that is dead.
///
/// Where an optimizer is sharded over nodes, each has its shard alone. With a second copy the node behind it
/// keeps that shard, too: when a rank has updated its part, it sends it there, and only when it has received
/// that of the node before it sends parameters to all. So where any rank has ended a step, all copies of that
/// step are complete; and until the next is, as they come in two places in turn.
class KeptMemory {
 public:
  /// `arenas` are those of the frozen state: parameters, buffers, then slots; `allocator` made them.
  /// Collective over the node where they are shared.
  KeptMemory(const SessionGround& ground, std::vector<Arena> arenas, ArenaAllocator& allocator,
             bool second_copy);

  // While the session runs. Local, but for `begin` and `pass_on`.
  void begin(std::int64_t step);  ///< all have the values of this step. Collective
  void spoil() { valid_ = false; }
  void before_update(ElementRange parameters, ElementRange buffers);  ///< this rank writes to these alone
  void spoil_update();                 ///< this rank could not make its part, and the others do not know
  void heard() { unsettled_ = true; }  ///< the step counts; hooks may change what they keep
  void complete(std::int64_t step);    ///< and have done so
  void let_go(const State& state);     ///< which goes now

  bool copies_shards() const noexcept { return !second_.empty() && shards_.size() > 1; }
  /// This rank's part of the update has been made: the node behind gets it. Collective over the column.
  void pass_on();

  /// What the second copy takes, on all of the node. Local.
  std::size_t second_bytes() const noexcept { return second_bytes_; }

  // When it has ended on all ranks that are left.
  /// What can be gone on with; the same on all ranks. nullopt: nothing. `memory` may be null. Collective.
  static std::optional<KeptValues> find(const KeptMemory* memory, const Communicator& left);
  void go_back(std::uint64_t update);  ///< brings the arenas to that; one rank of the node does. Local
  /// The values get into the state of the chief. Collective.
  static void give(const KeptMemory* memory, const KeptValues& values, const Communicator& comm,
                   State& state);

 private:
  /// What goes before the values of a shard.
  struct ShardWord {
    std::uint64_t update = 0;
    std::uint64_t spoiled = 0;
  };
  /// How far a rank is.
  struct Progress {
    std::atomic<std::uint64_t> begun = 0;    ///< updates; who begins one knows that all finished the last
    std::atomic<std::uint64_t> spoiled = 0;  ///< the first update that it could not make; 0: none
    ElementRange parameters;                 ///< what it writes to in the update begun last
    ElementRange buffers;

    // Where it keeps a part of the shard of the node before.
    std::atomic<std::uint64_t> copied[2] = {0, 0};  ///< of even, odd updates: the one that is there, plus 1
    std::atomic<std::uint64_t> copy_spoiled = 0;    ///< the first that its owner could not make; 0: none
    ShardWord mine;                                 ///< under way
    ShardWord theirs;
  };
  using Values = std::vector<std::vector<std::byte>>;

  bool in_an_arena(const Entry& entry) const;
  Values private_values(const State& state) const;
  void plan_shards(const SessionGround& ground, bool second_copy);
  void make_second(ArenaAllocator& allocator);
  void pass_on_through(const Communicator& column);
  std::span<float> arena_part(std::size_t arena, ElementRange range) const;
  std::span<float> second_part(std::size_t arena, ElementRange range) const;
  std::span<float> copy_part(std::uint64_t update, std::size_t arena, ElementRange range) const;
  static ElementRange written(const Progress& progress, std::size_t arena);
  std::optional<std::int64_t> step() const;
  bool can_be_at(std::uint64_t update, const Progress& progress) const;
  bool has_shard(std::uint64_t update) const;
  bool has_copy(std::uint64_t update) const;

  std::vector<Arena> arenas_;
  /// As the slices were before the update begun last; empty: not kept. Where there are shards, of this node's
  /// alone.
  std::vector<Arena> second_;
  std::vector<Arena> copies_[2];  ///< of the shard of the node before, after even and after odd updates
  std::size_t second_bytes_ = 0;
  std::shared_ptr<SharedMemory> window_;
  std::unique_ptr<Progress> own_;    ///< where nothing is shared
  std::vector<Progress*> progress_;  ///< of the ranks that write to the arenas
  int me_ = 0;                       ///< among these
  // Until the state goes.
  std::optional<Communicator> all_;
  std::optional<Communicator> column_;  ///< where shards are copied, of the ranks that have one
  std::vector<ElementRange> shards_;    ///< of each node; one where each has all
  // Where there are several.
  NodeList nodes_;   ///< for messages
  int columns_ = 0;  ///< ranks of a node that have a part of its shard
  std::size_t my_node_ = 0;
  std::size_t before_me_ = 0;  ///< the node before
  ElementRange mine_;          ///< this rank's part
  ElementRange copied_;        ///< and what it keeps of the node before
  std::vector<int> idle_;      ///< nodes on which this rank's column has no part
  const State* state_;
  Values before_;  ///< of this rank alone: as they were before the update begun last
  Values last_;    ///< as they were when the state went
  bool has_private_ = false;
  bool valid_ = false;
  bool unsettled_ = false;  ///< in a step that counts, before hooks have done their part
  std::uint64_t updates_ = 0;
  std::uint64_t completed_ = 0;
  std::int64_t step_ = 0;
};

/// Remembers the arenas that another allocator makes.
class KeepingAllocator final : public ArenaAllocator {
 public:
  explicit KeepingAllocator(ArenaAllocator& maker) : maker_(maker) {}
  Arena allocate(std::size_t elements) override { return kept.emplace_back(maker_.allocate(elements)); }
  Arena allocate_slot(std::size_t elements) override {
    return kept.emplace_back(maker_.allocate_slot(elements));
  }
  Arena allocate_for_node(std::size_t elements, int node) override {
    return maker_.allocate_for_node(elements, node);
  }

  std::vector<Arena> kept;

 private:
  ArenaAllocator& maker_;
};

}  // namespace lockstep
