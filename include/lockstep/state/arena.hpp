#pragma once

#include <cstddef>
#include <memory>
#include <span>

namespace lockstep {

/// Tensors and arenas start at multiples of this many floats (64 bytes: a cache line and a vector register).
inline constexpr std::size_t kArenaAlignment = 16;

/// Elements first, first + 1, ..., last - 1 of an arena.
struct ElementRange {
  std::size_t first = 0;
  std::size_t last = 0;
  std::size_t size() const noexcept { return last - first; }
};

/// One contiguous aligned buffer of floats, zero at first. Owns its storage, or shares it with whoever does.
class Arena {
 public:
  Arena() = default;
  Arena(std::shared_ptr<void> owner, std::span<float> values) : owner_(std::move(owner)), values_(values) {}

  std::span<float> values() const noexcept { return values_; }
  std::size_t size() const noexcept { return values_.size(); }

 private:
  std::shared_ptr<void> owner_;
  std::span<float> values_;
};

/// Where arenas come from: plain memory of this process, or memory shared by the ranks of a node (`mpi`).
class ArenaAllocator {
 public:
  virtual ~ArenaAllocator() = default;

  /// `elements` zeroed floats, aligned to kArenaAlignment. May be collective: see the implementation.
  virtual Arena allocate(std::size_t elements) = 0;

  /// The same for an optimizer slot, of which a part may be elsewhere.
  virtual Arena allocate_slot(std::size_t elements) { return allocate(elements); }

  /// The same for what node `node` alone uses.
  virtual Arena allocate_for_node(std::size_t elements, int node) {
    static_cast<void>(node);
    return allocate(elements);
  }
};

/// Memory of this process alone. Local.
class PlainAllocator final : public ArenaAllocator {
 public:
  Arena allocate(std::size_t elements) override;
};

}  // namespace lockstep
