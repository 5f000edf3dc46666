#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lockstep/base/bfloat16.hpp>

namespace lockstep {

/// Rounds `values` plus what rounding has cost before (`residual`, error feedback: Seide et al., 2014) into
/// `halves`, and writes to `next_residual` what it costs now: nothing where a number is not finite. All of
/// one length. Local.
inline void round_with_feedback(std::span<const float> values, std::span<const float> residual,
                                std::span<std::uint16_t> halves, std::span<float> next_residual) noexcept {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float wanted = values[i] + residual[i];
    const std::uint16_t half = to_bfloat16(wanted);
    const bool finite = (half & 0x7f80U) != 0x7f80U;
    halves[i] = half;
    next_residual[i] = finite ? wanted - from_bfloat16(half) : 0.0F;
  }
}

}  // namespace lockstep
