#include "bf16_tiles.hpp"

#include <immintrin.h>

namespace lockstep::bf16 {
namespace {

constexpr std::int64_t kLanes = 16;

__mmask16 first(std::int64_t count) noexcept {
  return count >= kLanes ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1U << count) - 1U);
}

/// 16 floats each, as 32 bf16: `low` in the lower half.
__m512i rounded(__m512 low, __m512 high) noexcept {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

/// 16 pairs of one element of `low` and one of `high` each.
__m512i pairs_of(__m512 low, __m512 high) noexcept {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                         22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, rounded(low, high));
}

/// Lane j of row i becomes lane i of row j.
void transpose(__m512i (&x)[kLanes]) noexcept {
  __m512i y[kLanes];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  // x[4 g + r] holds, in quarter q, column 4 q + r of rows 4 g to 4 g + 3.
  for (int r = 0; r < 4; ++r) {
    const __m512i low_01 = _mm512_shuffle_i32x4(x[r], x[4 + r], 0x44);
    const __m512i high_01 = _mm512_shuffle_i32x4(x[r], x[4 + r], 0xee);
    const __m512i low_23 = _mm512_shuffle_i32x4(x[8 + r], x[12 + r], 0x44);
    const __m512i high_23 = _mm512_shuffle_i32x4(x[8 + r], x[12 + r], 0xee);
    y[r] = _mm512_shuffle_i32x4(low_01, low_23, 0x88);
    y[4 + r] = _mm512_shuffle_i32x4(low_01, low_23, 0xdd);
    y[8 + r] = _mm512_shuffle_i32x4(high_01, high_23, 0x88);
    y[12 + r] = _mm512_shuffle_i32x4(high_01, high_23, 0xdd);
  }
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

/// work(0), ..., work(Count - 1), without a loop: compilers keep arrays that loops run over in memory.
template <int Count, class Work>
[[gnu::always_inline]] inline void unrolled(const Work& work) noexcept {
  if constexpr (Count > 0) {
    unrolled<Count - 1>(work);
    work(Count - 1);
  }
}

/// A tile's sums, in registers.
template <int Rows, int Vectors>
struct Sums {
  __m512 values[Rows][Vectors];

  template <class Work>
  [[gnu::always_inline]] void each(const Work& work) noexcept {
    unrolled<Rows>([&](int i) __attribute__((always_inline)) {
      unrolled<Vectors>([&](int v) __attribute__((always_inline)) { work(i, v, values[i][v]); });
    });
  }
};

template <int Rows, int Vectors, std::int64_t Row, std::int64_t Pair>
void sized_tile(std::int64_t columns, std::int64_t pairs, const std::uint32_t* a, const std::uint32_t* panel,
                bool accumulate, const Finish& finish, float* c, std::int64_t ldc) noexcept {
  // Where C is large, its rows come from far away.
  for (int i = 0; i < Rows; ++i) {
    for (int v = 0; v < Vectors; ++v) _mm_prefetch(c + i * ldc + v * kLanes, _MM_HINT_T1);
  }
  Sums<Rows, Vectors> sums;
  sums.each([](int, int, __m512& sum) __attribute__((always_inline)) { sum = _mm512_setzero_ps(); });
  for (std::int64_t p = 0; p < pairs; ++p) {
    __m512i row[Vectors];
    unrolled<Vectors>([&](int v) __attribute__((always_inline)) {
      row[v] = _mm512_load_si512(panel + p * kColumns + v * kLanes);
    });
    sums.each([&](int i, int v, __m512& sum) __attribute__((always_inline)) {
      const __m512i factor = _mm512_set1_epi32(static_cast<int>(a[i * Row + p * Pair]));
      sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(factor), reinterpret_cast<__m512bh>(row[v]));
    });
  }
  asm("" : "+r"(c));  // the rows' addresses are computed anew: they would take registers from the sums
  const __mmask16 last = first(columns - (Vectors - 1) * kLanes);
  const auto some = [&](int v) __attribute__((always_inline)) {
    return v + 1 < Vectors ? static_cast<__mmask16>(0xffff) : last;
  };
  if (accumulate) {
    sums.each([&](int i, int v, __m512& sum) __attribute__((always_inline)) {
      sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(some(v), c + i * ldc + v * kLanes));
    });
  }
  if (finish.bias != nullptr) {
    sums.each([&](int, int v, __m512& sum) __attribute__((always_inline)) {
      sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(some(v), finish.bias + v * kLanes));
    });
  }
  if (finish.relu) {
    // The second operand where one is NaN, and so a NaN stays.
    sums.each([&](int, int, __m512& sum)
                  __attribute__((always_inline)) { sum = _mm512_max_ps(_mm512_setzero_ps(), sum); });
  }
  sums.each([&](int i, int v, __m512& sum) __attribute__((always_inline)) {
    _mm512_mask_storeu_ps(c + i * ldc + v * kLanes, some(v), sum);
  });
}

using SizedTile = void (*)(std::int64_t, std::int64_t, const std::uint32_t*, const std::uint32_t*, bool,
                           const Finish&, float*, std::int64_t) noexcept;

template <int Vectors, std::int64_t Row, std::int64_t Pair>
SizedTile of_rows(std::int64_t rows) noexcept {
  static constexpr SizedTile kTiles[kRows] = {
      sized_tile<1, Vectors, Row, Pair>,  sized_tile<2, Vectors, Row, Pair>,
      sized_tile<3, Vectors, Row, Pair>,  sized_tile<4, Vectors, Row, Pair>,
      sized_tile<5, Vectors, Row, Pair>,  sized_tile<6, Vectors, Row, Pair>,
      sized_tile<7, Vectors, Row, Pair>,  sized_tile<8, Vectors, Row, Pair>,
      sized_tile<9, Vectors, Row, Pair>,  sized_tile<10, Vectors, Row, Pair>,
      sized_tile<11, Vectors, Row, Pair>, sized_tile<12, Vectors, Row, Pair>,
      sized_tile<13, Vectors, Row, Pair>, sized_tile<14, Vectors, Row, Pair>};
  return kTiles[rows - 1];
}

}  // namespace

void pack_rows(std::int64_t rows, std::int64_t terms, const float* a, std::int64_t lda,
               std::uint32_t* to) noexcept {
  constexpr std::int64_t kBoth = 2 * kLanes;
  for (std::int64_t i = 0; i < rows; ++i) {
    const float* from = a + i * lda;
    std::uint32_t* row = to + i * kRowDistance;
    std::int64_t p = 0;
    for (; p + kBoth <= terms; p += kBoth) {
      _mm512_store_si512(row + p / 2, rounded(_mm512_loadu_ps(from + p), _mm512_loadu_ps(from + p + kLanes)));
    }
    if (p < terms) {
      const __m512 low = _mm512_maskz_loadu_ps(first(terms - p), from + p);
      const __mmask16 rest = first(terms - p - kLanes);
      _mm512_store_si512(row + p / 2, rounded(low, _mm512_maskz_loadu_ps(rest, from + p + kLanes)));
    }
  }
}

void pack_pairs(std::int64_t terms, std::int64_t columns, const float* b, std::int64_t ldb,
                std::int64_t distance, std::uint32_t* to) noexcept {
  for (std::int64_t p = 0; p < terms; p += 2) {
    const float* low = b + p * ldb;
    const float* high = p + 1 < terms ? low + ldb : nullptr;
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      const __mmask16 some = first(columns - j);
      const __m512 above = high == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(some, high + j);
      _mm512_storeu_si512(to + p / 2 * distance + j, pairs_of(_mm512_maskz_loadu_ps(some, low + j), above));
    }
  }
}

void pack_pairs_transposed(std::int64_t terms, std::int64_t columns, const float* b, std::int64_t ldb,
                           std::uint32_t* to) noexcept {
  constexpr std::int64_t kBoth = 2 * kLanes;
  for (std::int64_t j = 0; j < columns; j += kLanes) {
    for (std::int64_t p = 0; p < terms; p += kBoth) {
      const __mmask16 low = first(terms - p);
      const __mmask16 high = first(terms - p - kLanes);
      __m512i block[kLanes];
      for (std::int64_t i = 0; i < kLanes; ++i) {
        const float* from = b + (j + i) * ldb + p;
        block[i] = j + i < columns
                       ? rounded(_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from + kLanes))
                       : _mm512_setzero_si512();
      }
      transpose(block);
      const std::int64_t pairs = (terms - p + 1) / 2 < kLanes ? (terms - p + 1) / 2 : kLanes;
      for (std::int64_t i = 0; i < pairs; ++i) _mm512_store_si512(to + (p / 2 + i) * kColumns + j, block[i]);
    }
  }
}

void tile(Order order, std::int64_t rows, std::int64_t columns, std::int64_t pairs, const std::uint32_t* a,
          const std::uint32_t* panel, bool accumulate, const Finish& finish, float* c,
          std::int64_t ldc) noexcept {
  const bool wide = columns > kLanes;
  const auto sized = [&]<std::int64_t Row, std::int64_t Pair>() {
    return wide ? of_rows<2, Row, Pair>(rows) : of_rows<1, Row, Pair>(rows);
  };
  const SizedTile run = order == Order::rows    ? sized.operator()<kRowDistance, 1>()
                        : order == Order::pairs ? sized.operator()<1, kPairDistance>()
                                                : sized.operator()<1, kColumns>();
  run(columns, pairs, a, panel, accumulate, finish, c, ldc);
}

void round(std::int64_t count, const float* values, std::uint16_t* halves) noexcept {
  constexpr std::int64_t kBoth = 2 * kLanes;
  std::int64_t i = 0;
  for (; i + kBoth <= count; i += kBoth) {
    _mm512_storeu_si512(halves + i,
                        rounded(_mm512_loadu_ps(values + i), _mm512_loadu_ps(values + i + kLanes)));
  }
  if (i == count) return;
  const __m512i rest = rounded(_mm512_maskz_loadu_ps(first(count - i), values + i),
                               _mm512_maskz_loadu_ps(first(count - i - kLanes), values + i + kLanes));
  _mm512_mask_storeu_epi16(halves + i, static_cast<__mmask32>((std::uint64_t{1} << (count - i)) - 1), rest);
}

}  // namespace lockstep::bf16
