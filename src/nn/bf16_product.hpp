#pragma once

#include <cstdint>
#include <span>

#include "bf16_tiles.hpp"

namespace lockstep {

/// Whether this CPU multiplies pairs of bf16 and adds them up in fp32 (AVX512-BF16), and this build can use
/// it. The other functions need it.
bool has_bf16_products() noexcept;

/// C (m x n) = op(A) (m x k) times op(B) (k x n), plus C if `accumulate`, finished: as Kernels::gemm, with A
/// and B rounded to bf16 (to the nearest, ties to even; NaN stays NaN, denormals become 0), and sums in fp32.
/// The bits depend on the values and the sizes alone. Allocates for each thread when that first calls.
void bf16_product(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                  const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool accumulate,
                  const bf16::Finish& finish, float* c, std::int64_t ldc);

/// halves = values, rounded likewise. As long as each other.
void round_to_bf16(std::span<const float> values, std::uint16_t* halves) noexcept;

}  // namespace lockstep
