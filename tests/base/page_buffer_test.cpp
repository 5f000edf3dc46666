#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <utility>

#include <doctest/doctest.h>

#include <lockstep/base/page_buffer.hpp>

using namespace lockstep;

TEST_CASE("a buffer has the size that was asked for and starts on a cache line; large ones on a huge page") {
  for (const std::size_t bytes :
       {std::size_t{1}, std::size_t{64}, std::size_t{4097}, (std::size_t{2} << 20) + 1}) {
    PageBuffer buffer(bytes);
    CHECK(buffer.size() == bytes);
    const std::size_t alignment = bytes > (std::size_t{2} << 20) ? std::size_t{2} << 20 : 64;
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % alignment == 0);
    buffer.bytes().front() = std::byte{1};
    buffer.bytes().back() = std::byte{2};
    const PageBuffer moved = std::move(buffer);
    CHECK(moved.bytes().back() == std::byte{2});
  }
  CHECK(PageBuffer().bytes().empty());
  CHECK(PageBuffer(0).bytes().empty());
  CHECK_THROWS_AS(PageBuffer{std::numeric_limits<std::size_t>::max()}, std::bad_alloc);
}
