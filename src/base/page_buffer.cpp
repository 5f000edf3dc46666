#include <new>

#include <sys/mman.h>

#include <lockstep/base/page_buffer.hpp>

namespace lockstep {

PageBuffer::PageBuffer(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  constexpr std::size_t kCacheLine = 64;
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : kCacheLine;
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (rounded < bytes) throw std::bad_alloc();
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, rounded)));
  if (memory_ == nullptr) throw std::bad_alloc();
  // Only where the program asks for them does the kernel give them by default. A refusal costs speed alone.
  if (alignment == kHugePage) ::madvise(memory_.get(), rounded, MADV_HUGEPAGE);
}

}  // namespace lockstep
