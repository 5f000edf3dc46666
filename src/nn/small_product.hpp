#pragma once

#include <cstdint>

namespace lockstep {

/// A matrix whose element (i, j) lies at values[i * row + j * column].
struct StridedMatrix {
  const float* values;
  std::int64_t row;
  std::int64_t column;
};

/// C (m x n) = A (m x k) times B (k x n), plus C if `accumulate`: for matrices that lie in the caches and are
/// too small for a library's preparations to pay. B and C are row-major, `ldb` and `ldc` their rows'
/// distance. Each element is a chain of fused multiply-adds in the order of k, where the CPU has them: the
/// same bits for a given build, whatever the sizes of the rest.
void small_product(std::int64_t m, std::int64_t n, std::int64_t k, const StridedMatrix& a, const float* b,
                   std::int64_t ldb, bool accumulate, float* c, std::int64_t ldc) noexcept;

}  // namespace lockstep
