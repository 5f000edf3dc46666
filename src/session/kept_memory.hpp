#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/state/arena.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

struct SessionGround;

/// The arenas of a State beyond its life, and how far each rank that writes to them has come. Where ranks of
/// a node share arenas, they see this of each other, also of one that is dead.
class KeptMemory {
 public:
  /// `arenas` are those of the frozen state: parameters, buffers, then slots; `allocator` made them.
  /// Collective over the node where they are shared.
  KeptMemory(const SessionGround& ground, std::vector<Arena> arenas, ArenaAllocator& allocator,
             bool second_copy);

  // While the session runs. Local.
  void begin(std::int64_t step);  ///< all have the values of this step
  void spoil() { valid_ = false; }
  void before_update(ElementRange parameters, ElementRange buffers);  ///< this rank writes to these alone
  void spoil_update();                 ///< this rank could not make its part, and the others do not know
  void heard() { unsettled_ = true; }  ///< the step counts; hooks may change what they keep
  void complete(std::int64_t step);    ///< and have done so
  void let_go(const State& state);     ///< which goes now

  // When it has ended on all ranks that are left. Local, but for `give`.
  std::optional<std::int64_t> step() const;  ///< up to which it can be gone on with from here
  void go_back();                            ///< brings the arenas to that; one rank of the node does
  /// The values of rank `source` get into the state of the chief. Collective.
  static void give(const KeptMemory* memory, const Communicator& comm, int source, State& state,
                   std::int64_t step);

 private:
  /// How far a rank is.
  struct Progress {
    std::atomic<std::uint64_t> begun = 0;    ///< updates; who begins one knows that all finished the last
    std::atomic<std::uint64_t> spoiled = 0;  ///< the first update that it could not make; 0: none
    ElementRange parameters;                 ///< what it writes to in the update begun last
    ElementRange buffers;
  };
  using Values = std::vector<std::vector<std::byte>>;

  bool in_an_arena(const Entry& entry) const;
  Values private_values(const State& state) const;
  void copy(const std::vector<Arena>& from, const std::vector<Arena>& to, const Progress& of) const;
  std::vector<std::span<const std::byte>> values() const;

  std::vector<Arena> arenas_;
  std::vector<Arena> second_;  ///< as the slices were before the update begun last; empty: not kept
  std::shared_ptr<SharedMemory> window_;
  std::unique_ptr<Progress> own_;    ///< where nothing is shared
  std::vector<Progress*> progress_;  ///< of the ranks that write to the arenas
  int me_ = 0;                       ///< among these
  const State* state_;
  std::vector<Entry> entries_;  ///< in the arenas or, with null data, of this rank alone
  Values before_;               ///< of this rank alone: as they were before the update begun last
  Values last_;                 ///< as they were when the state went
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
