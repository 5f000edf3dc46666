#include <memory>

#include <lockstep/reduce/node_allocator.hpp>

namespace lockstep {

Arena NodeAllocator::allocate(std::size_t elements) {
  if (elements == 0) return {};
  // The memory belongs to the first rank of the node; the window gives it at least page alignment.
  std::shared_ptr<SharedMemory> memory = node_.share(node_.rank() == 0 ? elements * sizeof(float) : 0);
  const auto values = std::span(reinterpret_cast<float*>(memory->region(0).data()), elements);
  return {std::move(memory), values};
}

}  // namespace lockstep
