#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

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

/// Rounds `values` plus what rounding has cost before (`residual`, error feedback: Seide et al., 2014) into
/// `halves`, and keeps in `residual` what it costs now: nothing where a number is not finite. All of one
/// length. Local.
inline void round_with_feedback(std::span<const float> values, std::span<float> residual,
                                std::span<std::uint16_t> halves) noexcept {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float wanted = values[i] + residual[i];
    const std::uint16_t half = to_bfloat16(wanted);
    const bool finite = (half & 0x7f80U) != 0x7f80U;
    halves[i] = half;
    residual[i] = finite ? wanted - from_bfloat16(half) : 0.0F;
  }
}

}  // namespace lockstep
