#include "bf16_product.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>

#include "bf16_tiles.hpp"

namespace lockstep {
namespace {

using namespace bf16;

constexpr std::int64_t kBlockColumns = 512;  // of B: with the block of A, a good part of a second-level cache
constexpr std::int64_t kTerms = 2 * kPairs;

std::int64_t pieces_of(std::int64_t size, std::int64_t most) {
  return (size + most - 1) / most;
}

/// The rounded blocks that a thread works on.
struct alignas(64) Blocks {
  std::array<std::uint32_t, std::max(kBlockRows* kRowDistance, kPairs* kPairDistance)> a;
  std::array<std::uint32_t, kPairs * kBlockColumns> b;
};

Blocks& blocks_of_this_thread() {
  thread_local const auto blocks = std::make_unique<Blocks>();
  return *blocks;
}

}  // namespace

bool has_bf16_products() noexcept {
  static const bool has = __builtin_cpu_supports("avx512bf16") != 0 &&
                          __builtin_cpu_supports("avx512vl") != 0 &&
                          __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512dq") != 0;
  return has;
}

void round_to_bf16(std::span<const float> values, std::uint16_t* halves) noexcept {
  bf16::round(static_cast<std::int64_t>(values.size()), values.data(), halves);
}

void bf16_product(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                  const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool accumulate,
                  float* c, std::int64_t ldc) {
  Blocks& blocks = blocks_of_this_thread();
  const Order order = transpose_a ? Order::pairs : Order::rows;
  for (std::int64_t j = 0; j < n; j += kBlockColumns) {
    const std::int64_t columns = std::min(kBlockColumns, n - j);
    for (std::int64_t p = 0; p < k; p += kTerms) {
      const std::int64_t terms = std::min(kTerms, k - p);
      const std::int64_t pairs = (terms + 1) / 2;
      const bool add = accumulate || p > 0;
      const auto panel = [&](std::int64_t column) {
        return blocks.b.data() + column / kColumns * kColumns * kPairs;
      };
      if (transpose_b) {
        for (std::int64_t column = 0; column < columns; column += kColumns) {
          pack_pairs_transposed(terms, std::min(kColumns, columns - column), b + (j + column) * ldb + p, ldb,
                                panel(column));
        }
      } else {
        // A few pairs of all panels after each other: the rows of B are read in long pieces.
        constexpr std::int64_t kSome = 8;
        for (std::int64_t some = 0; some < terms; some += kSome) {
          for (std::int64_t column = 0; column < columns; column += kColumns) {
            pack_pairs(std::min(kSome, terms - some), std::min(kColumns, columns - column),
                       b + (p + some) * ldb + j + column, ldb, kColumns, panel(column) + some / 2 * kColumns);
          }
        }
      }
      const std::int64_t blocks_of_rows = pieces_of(m, kBlockRows);
      for (std::int64_t block = 0; block < blocks_of_rows; ++block) {
        const std::int64_t i = m * block / blocks_of_rows;  // of equal heights, as far as can be
        const std::int64_t rows = m * (block + 1) / blocks_of_rows - i;
        if (transpose_a) {
          pack_pairs(terms, rows, a + p * lda + i, lda, kPairDistance, blocks.a.data());
        } else {
          pack_rows(rows, terms, a + i * lda + p, lda, blocks.a.data());
        }
        const std::int64_t tiles = pieces_of(rows, kRows);
        for (std::int64_t column = 0; column < columns; column += kColumns) {
          const std::int64_t width = std::min(kColumns, columns - column);
          for (std::int64_t t = 0; t < tiles; ++t) {
            const std::int64_t begin = rows * t / tiles;  // likewise
            const std::int64_t height = rows * (t + 1) / tiles - begin;
            tile(order, height, width, pairs, blocks.a.data() + begin * (transpose_a ? 1 : kRowDistance),
                 panel(column), add, c + (i + begin) * ldc + j + column, ldc);
          }
        }
      }
    }
  }
}

}  // namespace lockstep
