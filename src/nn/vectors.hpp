#pragma once

#include <cstdint>
#include <cstring>

namespace lockstep {

// Vectors as gcc and clang both have them; where the CPU's are shorter, they take several.
inline constexpr std::int64_t kVectorLanes = 16;
using Vector = float __attribute__((vector_size(kVectorLanes * sizeof(float))));

template <class V>
inline V load(const float* from) noexcept {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// A Vector, or a float.
template <class V>
inline void store(const V& value, float* to) noexcept {
  std::memcpy(to, &value, sizeof value);
}

}  // namespace lockstep
