#include <algorithm>
#include <memory>

#include <lockstep/reduce/node_allocator.hpp>
#include <lockstep/reduce/reducer.hpp>

namespace lockstep {

Arena NodeAllocator::share(std::size_t elements, FirstTouch touch) {
  if (elements == 0) return {};
  // The memory belongs to the first rank of the node; the window gives it at least page alignment.
  std::shared_ptr<SharedMemory> memory = node_.share(node_.rank() == 0 ? elements * sizeof(float) : 0, touch);
  const auto values = std::span(reinterpret_cast<float*>(memory->region(0).data()), elements);
  return {std::move(memory), values};
}

Arena NodeAllocator::allocate(std::size_t elements) {
  return share(elements, FirstTouch::owner);
}

Arena NodeAllocator::allocate_slot(std::size_t elements) {
  if (!shard_slots_ || topology_->my_node == 0) return allocate(elements);
  return share_part(elements, shard_of_node(*topology_, elements, topology_->my_node));
}

Arena NodeAllocator::allocate_for_node(std::size_t elements, int node) {
  if (topology_ == nullptr || topology_->my_node == 0 || topology_->my_node == node)
    return allocate(elements);
  return share_part(elements, {});
}

Arena NodeAllocator::share_part(std::size_t elements, ElementRange mine) {
  Arena arena = share(elements, FirstTouch::nobody);
  if (node_.rank() == 0 && mine.size() > 0) {
    std::ranges::fill(arena.values().subspan(mine.first, mine.size()), 0.0F);
  }
  node_.barrier("the first values of an arena");
  return arena;
}

}  // namespace lockstep
