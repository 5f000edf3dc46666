#include <lockstep/base/error.hpp>

#include "bf16_product.hpp"

namespace lockstep {

bool has_bf16_products() noexcept {
  return false;
}

void bf16_product(bool, bool, std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t,
                  const float*, std::int64_t, bool, float*, std::int64_t) {
  throw InternalError("this build has no products in bf16");
}

void round_to_bf16(std::span<const float>, std::uint16_t*) noexcept {}

}  // namespace lockstep
