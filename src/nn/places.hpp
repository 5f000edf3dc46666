#pragma once

#include <cstddef>
#include <cstdint>

#include <lockstep/state/arena.hpp>
#include <lockstep/state/tensor.hpp>

namespace lockstep {

/// Rounded up to a multiple of the arenas' alignment: where the next thing may lie.
inline std::size_t aligned(std::size_t elements) {
  return (elements + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

/// Of so many samples of a shape.
inline std::size_t elements(const Shape& shape, std::int64_t samples) {
  return static_cast<std::size_t>(element_count(shape)) * static_cast<std::size_t>(samples);
}

}  // namespace lockstep
