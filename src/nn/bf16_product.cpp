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
constexpr std::int64_t kCacheLine = 16;  // floats

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

/// Rows that are asked for while others are worked on.
class Ahead {
 public:
  /// All of them are asked for in so many calls.
  Ahead(const float* from, std::int64_t distance, std::int64_t columns, std::int64_t rows, std::int64_t calls)
      : from_(from), distance_(distance), columns_(columns), rows_(rows), some_(pieces_of(rows, calls)) {}

  void ask() {
    for (const std::int64_t end = std::min(rows_, next_ + some_); next_ < end; ++next_) {
      for (std::int64_t x = 0; x < columns_; x += kCacheLine) {
        __builtin_prefetch(from_ + next_ * distance_ + x, 0, 2);  // for reading, to the second-level cache
      }
    }
  }

 private:
  const float* from_;
  std::int64_t distance_, columns_, rows_, some_;
  std::int64_t next_ = 0;
};

std::uint32_t* panel(Blocks& blocks, std::int64_t column) {
  return blocks.b.data() + column / kColumns * kColumns * kPairs;
}

void pack_b(Blocks& blocks, bool transposed, std::int64_t terms, std::int64_t columns, const float* b,
            std::int64_t ldb) {
  if (transposed) {
    for (std::int64_t column = 0; column < columns; column += kColumns) {
      pack_pairs_transposed(terms, std::min(kColumns, columns - column), b + column * ldb, ldb,
                            panel(blocks, column));
    }
    return;
  }
  // A few pairs of all panels after each other: the rows of B are read in long pieces.
  constexpr std::int64_t kSome = 8;
  for (std::int64_t p = 0; p < terms; p += kSome) {
    for (std::int64_t column = 0; column < columns; column += kColumns) {
      pack_pairs(std::min(kSome, terms - p), std::min(kColumns, columns - column), b + p * ldb + column, ldb,
                 kColumns, panel(blocks, column) + p / 2 * kColumns);
    }
  }
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
                  const Finish& finish, float* c, std::int64_t ldc) {
  Blocks& blocks = blocks_of_this_thread();
  const std::int64_t blocks_of_rows = pieces_of(m, kBlockRows);
  for (std::int64_t j = 0; j < n; j += kBlockColumns) {
    const std::int64_t columns = std::min(kBlockColumns, n - j);
    for (std::int64_t p = 0; p < k; p += kTerms) {
      const std::int64_t terms = std::min(kTerms, k - p);
      pack_b(blocks, transpose_b, terms, columns, transpose_b ? b + j * ldb + p : b + p * ldb + j, ldb);
      const std::int64_t next = p + terms;
      const std::int64_t next_terms = std::min(kTerms, k - next);
      const std::int64_t panels = pieces_of(columns, kColumns);
      // B's next terms, some before each tile.
      Ahead next_b = transpose_b
                         ? Ahead(b + j * ldb + next, ldb, next_terms, next_terms > 0 ? columns : 0,
                                 pieces_of(m, kRows) * panels)
                         : Ahead(b + next * ldb + j, ldb, columns, next_terms, pieces_of(m, kRows) * panels);
      for (std::int64_t block = 0; block < blocks_of_rows; ++block) {
        const std::int64_t i = m * block / blocks_of_rows;  // of equal heights, as far as can be
        const std::int64_t rows = m * (block + 1) / blocks_of_rows - i;
        if (transpose_a) {
          pack_pairs(terms, rows, a + p * lda + i, lda, kPairDistance, blocks.a.data());
        } else {
          pack_rows(rows, terms, a + i * lda + p, lda, blocks.a.data());
        }
        const std::int64_t tiles = pieces_of(rows, kRows);
        // The next block, or the next terms of this one.
        Ahead next_a = transpose_a ? Ahead(a + next * lda + i, lda, rows, next_terms, tiles * panels)
                                   : Ahead(a + (i + rows) * lda + p, lda, terms, std::min(rows, m - i - rows),
                                           tiles * panels);
        for (std::int64_t t = 0; t < tiles; ++t) {
          const std::int64_t begin = rows * t / tiles;  // likewise
          const std::int64_t height = rows * (t + 1) / tiles - begin;
          for (std::int64_t column = 0; column < columns; column += kColumns) {
            next_a.ask();
            next_b.ask();
            Finish its;
            if (next_terms <= 0) {
              its = {finish.bias == nullptr ? nullptr : finish.bias + j + column, finish.relu};
            }
            tile(transpose_a ? Order::pairs : Order::rows, height, std::min(kColumns, columns - column),
                 (terms + 1) / 2, blocks.a.data() + begin * (transpose_a ? 1 : kRowDistance),
                 panel(blocks, column), accumulate || p > 0, its, c + (i + begin) * ldc + j + column, ldc);
          }
        }
      }
    }
  }
}

}  // namespace lockstep
