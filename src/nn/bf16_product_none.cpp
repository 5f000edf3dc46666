#include <exception>

#include "bf16_product.hpp"
#include "bf16_tiles.hpp"

namespace lockstep {

// Of a build for another kind of CPU. Nobody calls what follows.

bool has_bf16_products() noexcept {
  return false;
}

void bf16_product(bool, bool, std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t,
                  const float*, std::int64_t, bool, const bf16::Finish&, float*, std::int64_t) {
  std::terminate();
}

void round_to_bf16(std::span<const float>, std::uint16_t*) noexcept {
  std::terminate();
}

namespace bf16 {

void pack_rows(std::int64_t, std::int64_t, const float*, std::int64_t, std::uint32_t*) noexcept {
  std::terminate();
}

void pack_pairs(std::int64_t, std::int64_t, const float*, std::int64_t, std::int64_t,
                std::uint32_t*) noexcept {
  std::terminate();
}

void pack_pairs_transposed(std::int64_t, std::int64_t, const float*, std::int64_t, std::uint32_t*) noexcept {
  std::terminate();
}

void tile(Order, std::int64_t, std::int64_t, std::int64_t, const std::uint32_t*, const std::uint32_t*, bool,
          const Finish&, float*, std::int64_t) noexcept {
  std::terminate();
}

}  // namespace bf16
}  // namespace lockstep
