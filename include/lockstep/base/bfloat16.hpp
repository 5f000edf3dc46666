#pragma once

#include <bit>
#include <cstdint>

namespace lockstep {

/// The upper half of a float, rounded to the nearest, ties to even. NaN stays NaN.
inline std::uint16_t to_bfloat16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const bool nan = (bits & 0x7fffffffU) > 0x7f800000U;
  const std::uint32_t rounded = (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
  return static_cast<std::uint16_t>(nan ? (bits >> 16 | 0x40U) : rounded);
}

inline float from_bfloat16(std::uint16_t half) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(half) << 16);
}

}  // namespace lockstep
