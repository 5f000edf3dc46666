#include "small_product.hpp"

#include "vectors.hpp"

namespace lockstep {
namespace {

/// work(0), ..., work(Count - 1), without a loop: compilers keep arrays that loops run over in memory.
template <int Count, class Work>
[[gnu::always_inline]] inline void unrolled(const Work& work) noexcept {
  if constexpr (Count > 0) {
    unrolled<Count - 1>(work);
    work(Count - 1);
  }
}

/// Rows x (Vectors * kVectorLanes) elements of C, which stay in registers.
template <int Rows, int Vectors>
void tile(std::int64_t k, const StridedMatrix& a, const float* b, std::int64_t ldb, bool accumulate, float* c,
          std::int64_t ldc) noexcept {
  Vector sums[Rows][Vectors];
  const auto each = [&](const auto& work) __attribute__((always_inline)) {
    unrolled<Rows>([&](int i) __attribute__((always_inline)) {
      unrolled<Vectors>([&](int v) __attribute__((always_inline)) { work(i, v, sums[i][v]); });
    });
  };
  each([&](int i, int v, Vector& sum) __attribute__((always_inline)) {
    sum = accumulate ? load<Vector>(c + i * ldc + v * kVectorLanes) : Vector{};
  });
  for (std::int64_t p = 0; p < k; ++p) {
    Vector row[Vectors];
    unrolled<Vectors>([&](int v) __attribute__((always_inline)) {
      row[v] = load<Vector>(b + p * ldb + v * kVectorLanes);
    });
    each([&](int i, int v, Vector& sum)
             __attribute__((always_inline)) { sum += a.values[i * a.row + p * a.column] * row[v]; });
  }
  each([&](int i, int v, const Vector& sum)
           __attribute__((always_inline)) { store(sum, c + i * ldc + v * kVectorLanes); });
}

template <int Rows>
void rows(std::int64_t n, std::int64_t k, const StridedMatrix& a, const float* b, std::int64_t ldb,
          bool accumulate, float* c, std::int64_t ldc) noexcept {
  std::int64_t j = 0;
  for (; j + 2 * kVectorLanes <= n; j += 2 * kVectorLanes)
    tile<Rows, 2>(k, a, b + j, ldb, accumulate, c + j, ldc);
  for (; j + kVectorLanes <= n; j += kVectorLanes) tile<Rows, 1>(k, a, b + j, ldb, accumulate, c + j, ldc);
  for (; j < n; ++j) {
    for (int i = 0; i < Rows; ++i) {
      float sum = accumulate ? c[i * ldc + j] : 0.0F;
      for (std::int64_t p = 0; p < k; ++p) sum += a.values[i * a.row + p * a.column] * b[p * ldb + j];
      c[i * ldc + j] = sum;
    }
  }
}

}  // namespace

void small_product(std::int64_t m, std::int64_t n, std::int64_t k, const StridedMatrix& a, const float* b,
                   std::int64_t ldb, bool accumulate, float* c, std::int64_t ldc) noexcept {
  constexpr int kRows =
      8;  // with two vectors each: 16 of 32 registers, enough for the latency of an addition
  std::int64_t i = 0;
  const auto below = [&] { return StridedMatrix{a.values + i * a.row, a.row, a.column}; };
  for (; i + kRows <= m; i += kRows) rows<kRows>(n, k, below(), b, ldb, accumulate, c + i * ldc, ldc);
  for (; i < m; ++i) rows<1>(n, k, below(), b, ldb, accumulate, c + i * ldc, ldc);
}

}  // namespace lockstep
