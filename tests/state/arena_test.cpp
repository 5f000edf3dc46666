#include <algorithm>
#include <cstdint>

#include <doctest/doctest.h>

#include <lockstep/state/arena.hpp>

using namespace lockstep;

TEST_CASE("arenas are zero, aligned and as large as asked") {
  PlainAllocator allocator;
  for (const std::size_t elements : {1, 15, 16, 17, 1000, 600000}) {
    CAPTURE(elements);
    const Arena arena = allocator.allocate(elements);
    CHECK(arena.size() == elements);
    CHECK(reinterpret_cast<std::uintptr_t>(arena.values().data()) % (kArenaAlignment * sizeof(float)) == 0);
    CHECK(std::all_of(arena.values().begin(), arena.values().end(), [](float x) { return x == 0; }));
  }
  CHECK(allocator.allocate(0).size() == 0);
  CHECK(Arena().size() == 0);
}

TEST_CASE("an arena keeps its storage while any copy lives") {
  PlainAllocator allocator;
  Arena copy;
  {
    const Arena arena = allocator.allocate(100);
    arena.values()[99] = 7;
    copy = arena;
  }
  CHECK(copy.values()[99] == 7);
}
