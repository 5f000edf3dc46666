#pragma once

#include <cstdint>

/// The inner loops of products in bf16: the one file that is compiled for AVX512-BF16, whatever the rest is
/// compiled for. It includes nothing that has functions others might get from it.
///
/// bf16 numbers are kept as pairs of neighbours along the dimension that is summed over ("pairs"), 4 bytes
/// each.
namespace lockstep::bf16 {

constexpr std::int64_t kPairs = 128;      ///< of a block: 256 terms of each sum
constexpr std::int64_t kColumns = 32;     ///< of a panel of B
constexpr std::int64_t kRows = 14;        ///< at most, of a tile: 28 of 32 registers hold its sums
constexpr std::int64_t kBlockRows = 168;  ///< of a block of A

/// How a block of A lies: the pairs of each row side by side, or the same pair of all rows; the latter also
/// as a panel of B does.
enum class Order { rows, pairs, panel };
constexpr std::int64_t kRowDistance = kPairs + 16;      ///< no power of two
constexpr std::int64_t kPairDistance = kBlockRows + 8;  ///< whole vectors

/// Rounds rows [0, rows) and terms [0, terms) of A, whose rows lie `lda` apart, for Order::rows.
void pack_rows(std::int64_t rows, std::int64_t terms, const float* a, std::int64_t lda,
               std::uint32_t* to) noexcept;

/// Rounds terms [0, terms), which lie `ldb` apart, of columns [0, columns), side by side, to pairs
/// `distance` apart. Writes whole vectors of 16 columns.
void pack_pairs(std::int64_t terms, std::int64_t columns, const float* b, std::int64_t ldb,
                std::int64_t distance, std::uint32_t* to) noexcept;

/// The same where the terms lie side by side and the columns `ldb` apart; `distance` is kColumns, and
/// columns are at most that many.
void pack_pairs_transposed(std::int64_t terms, std::int64_t columns, const float* b, std::int64_t ldb,
                           std::uint32_t* to) noexcept;

/// What becomes of complete sums: `bias` (one for each column) is added unless null, then what is below zero
/// is cut.
struct Finish {
  const float* bias = nullptr;
  bool relu = false;
};

/// C (rows x columns) = A times a panel of B, plus C if `accumulate`, finished.
void tile(Order order, std::int64_t rows, std::int64_t columns, std::int64_t pairs, const std::uint32_t* a,
          const std::uint32_t* panel, bool accumulate, const Finish& finish, float* c,
          std::int64_t ldc) noexcept;

/// halves = values, rounded.
void round(std::int64_t count, const float* values, std::uint16_t* halves) noexcept;

}  // namespace lockstep::bf16
