#include <cmath>
#include <cstdint>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/bfloat16.hpp>

namespace lockstep {
namespace {

TEST_CASE("every bfloat16 is itself, and what lies between two becomes the nearer, or the even one") {
  for (std::uint32_t half = 0; half < 0x10000U; ++half) {
    const auto bits = static_cast<std::uint16_t>(half);
    const float value = from_bfloat16(bits);
    if (std::isnan(value)) {
      CHECK(std::isnan(from_bfloat16(to_bfloat16(value))));
      continue;
    }
    REQUIRE(to_bfloat16(value) == bits);
    if ((half & 0x7fffU) >= 0x7f7fU) continue;  // nothing finite lies beyond
    const auto next = static_cast<std::uint16_t>(half + 1);
    const auto middle = std::bit_cast<float>((half << 16) + 0x8000U);
    const auto up = half % 2 == 0 ? bits : next;
    REQUIRE(to_bfloat16(middle) == up);
    REQUIRE(to_bfloat16(std::bit_cast<float>((half << 16) + 0x7fffU)) == bits);
    REQUIRE(to_bfloat16(std::bit_cast<float>((half << 16) + 0x8001U)) == next);
  }
}

TEST_CASE("a NaN whose upper half is that of infinity stays a NaN, and large numbers become infinity") {
  CHECK(std::isnan(from_bfloat16(to_bfloat16(std::bit_cast<float>(0x7f800001U)))));
  CHECK(std::isnan(from_bfloat16(to_bfloat16(std::bit_cast<float>(0xffffffffU)))));
  CHECK(from_bfloat16(to_bfloat16(std::numeric_limits<float>::max())) ==
        std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace lockstep
