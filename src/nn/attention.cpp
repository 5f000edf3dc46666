#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/attention.hpp>
#include <lockstep/nn/elementwise.hpp>

#include "bf16_tiles.hpp"
#include "small_product.hpp"

namespace lockstep {
namespace {

constexpr std::int64_t kBlock = 128;  // positions of queries and of keys that are worked on at once
constexpr std::int64_t kRows = 8;     // of a block that are taken together: they see nearly the same keys
constexpr std::size_t kVector = 16;

/// to [columns, block] = factor times from [rows, columns], transposed.
void turn(std::int64_t rows, std::int64_t columns, const float* __restrict from, std::int64_t row,
          float factor, std::int64_t block, float* __restrict to) {
  constexpr std::int64_t kTile = 16;
  for (std::int64_t i = 0; i < rows; i += kTile) {
    for (std::int64_t j = 0; j < columns; j += kTile) {
      if (i + kTile > rows || j + kTile > columns) {
        for (std::int64_t x = i; x < std::min(i + kTile, rows); ++x) {
          for (std::int64_t y = j; y < std::min(j + kTile, columns); ++y) {
            to[y * block + x] = factor * from[x * row + y];
          }
        }
        continue;
      }
      float tile[kTile][kTile];
      for (std::int64_t x = 0; x < kTile; ++x) {
        for (std::int64_t y = 0; y < kTile; ++y) tile[y][x] = from[(i + x) * row + j + y];
      }
      for (std::int64_t y = 0; y < kTile; ++y) {
        for (std::int64_t x = 0; x < kTile; ++x) to[(j + y) * block + i + x] = factor * tile[y][x];
      }
    }
  }
}

/// The products of one head for a block of queries and one of keys. Rows of queries, keys and values lie
/// `row` apart, those of outputs `width`; weights and slopes are [queries, block].
class Products {
 public:
  Products(std::int64_t head, std::int64_t block, std::int64_t row, std::int64_t width)
      : head_(head),
        block_(block),
        row_(row),
        width_(width),
        scale_(1.0F / std::sqrt(static_cast<float>(head))) {}
  virtual ~Products() = default;

  /// The block of keys and values that all others speak of.
  virtual void see(std::int64_t columns, const float* keys, const float* values, bool backward) = 0;

  /// For `count` queries and the first `wide` keys: weights = queries times keys, times the scale.
  virtual void scores(std::int64_t count, std::int64_t wide, const float* queries, float* weights) = 0;

  /// output = weights times the first `seen` values, plus what is there if `add`.
  virtual void mix(std::int64_t count, std::int64_t seen, const float* weights, bool add, float* output) = 0;

  /// slopes = output gradients times values.
  virtual void slopes(std::int64_t count, std::int64_t wide, const float* output_gradient, float* slopes) = 0;

  /// query gradients = slopes times the first `seen` keys, plus what is there if `add`.
  virtual void query_gradients(std::int64_t count, std::int64_t seen, const float* slopes, bool add,
                               float* query_gradient) = 0;

  /// gradients [columns, row] = weights, transposed, times factors [rows, ...], whose rows lie `distance`
  /// apart, plus what is there if `add`. With `causal`, query i sees keys 0 to i alone.
  virtual void turned(std::int64_t rows, std::int64_t columns, bool causal, const float* weights,
                      const float* factors, std::int64_t distance, bool add, float* gradients) = 0;

 protected:
  std::int64_t head_, block_, row_, width_;
  float scale_;
};

class Fp32Products final : public Products {
 public:
  static std::size_t size(std::int64_t head, std::int64_t block) {
    return static_cast<std::size_t>(2 * head * block);
  }

  Fp32Products(std::int64_t head, std::int64_t block, std::int64_t row, std::int64_t width, float* memory)
      : Products(head, block, row, width), turned_keys_(memory), turned_values_(memory + head * block) {}

  void see(std::int64_t columns, const float* keys, const float* values, bool backward) override {
    keys_ = keys;
    values_ = values;
    turn(columns, head_, keys, row_, scale_, block_, turned_keys_);
    if (backward) turn(columns, head_, values, row_, 1, block_, turned_values_);
  }

  void scores(std::int64_t count, std::int64_t wide, const float* queries, float* weights) override {
    small_product(count, wide, head_, {queries, row_, 1}, turned_keys_, block_, false, weights, block_);
  }

  void mix(std::int64_t count, std::int64_t seen, const float* weights, bool add, float* output) override {
    small_product(count, head_, seen, {weights, block_, 1}, values_, row_, add, output, width_);
  }

  void slopes(std::int64_t count, std::int64_t wide, const float* output_gradient, float* slopes) override {
    small_product(count, wide, head_, {output_gradient, width_, 1}, turned_values_, block_, false, slopes,
                  block_);
  }

  void query_gradients(std::int64_t count, std::int64_t seen, const float* slopes, bool add,
                       float* query_gradient) override {
    small_product(count, head_, seen, {slopes, block_, 1}, keys_, row_, add, query_gradient, row_);
  }

  void turned(std::int64_t rows, std::int64_t columns, bool causal, const float* weights,
              const float* factors, std::int64_t distance, bool add, float* gradients) override {
    for (std::int64_t c = 0; c < columns; c += kRows) {
      const std::int64_t from = causal ? c : 0;
      small_product(std::min(kRows, columns - c), head_, rows - from,
                    {weights + from * block_ + c, 1, block_}, factors + from * distance, distance, add,
                    gradients + c * row_, row_);
    }
  }

 private:
  float* turned_keys_;    // [head, block], times the scale
  float* turned_values_;  // [head, block]
  const float* keys_ = nullptr;
  const float* values_ = nullptr;
};

/// Memory of packed operands.
struct alignas(64) Line {
  std::uint32_t pairs[kVector];
};

struct AttentionPlan final : Plan {
  std::vector<Line> memory;
};

class Bf16Products final : public Products {
 public:
  /// Lines.
  static std::size_t size(std::int64_t head, std::int64_t block) {
    const std::int64_t pairs = 2 * panels_size(head, block) + 2 * panels_size(block, head) +
                               kRows * bf16::kRowDistance + pairs_of(block) * bf16::kPairDistance;
    return static_cast<std::size_t>(pairs) / kVector;
  }

  Bf16Products(std::int64_t head, std::int64_t block, std::int64_t row, std::int64_t width, Line* memory)
      : Products(head, block, row, width),
        turned_keys_(memory->pairs),
        turned_values_(turned_keys_ + panels_size(head, block)),
        by_position_(turned_values_ + panels_size(head, block)),
        factors_(by_position_ + panels_size(block, head)),
        rows_(factors_ + panels_size(block, head)),
        turned_weights_(rows_ + kRows * bf16::kRowDistance) {}

  void see(std::int64_t columns, const float* keys, const float* values, bool backward) override {
    pack_turned(columns, keys, turned_keys_);
    pack(columns, backward ? keys : values, row_, by_position_);
    if (backward) pack_turned(columns, values, turned_values_);
  }

  void scores(std::int64_t count, std::int64_t wide, const float* queries, float* weights) override {
    bf16::pack_rows(count, head_, queries, row_, rows_);
    multiply(bf16::Order::rows, count, wide, pairs_of(head_), rows_, turned_keys_, pairs_of(head_), false,
             weights, block_);
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t j = 0; j < wide; ++j) weights[i * block_ + j] *= scale_;
    }
  }

  void mix(std::int64_t count, std::int64_t seen, const float* weights, bool add, float* output) override {
    bf16::pack_rows(count, seen, weights, block_, rows_);
    multiply(bf16::Order::rows, count, head_, pairs_of(seen), rows_, by_position_, pairs_of(block_), add,
             output, width_);
  }

  void slopes(std::int64_t count, std::int64_t wide, const float* output_gradient, float* slopes) override {
    bf16::pack_rows(count, head_, output_gradient, width_, rows_);
    multiply(bf16::Order::rows, count, wide, pairs_of(head_), rows_, turned_values_, pairs_of(head_), false,
             slopes, block_);
  }

  void query_gradients(std::int64_t count, std::int64_t seen, const float* slopes, bool add,
                       float* query_gradient) override {
    bf16::pack_rows(count, seen, slopes, block_, rows_);
    multiply(bf16::Order::rows, count, head_, pairs_of(seen), rows_, by_position_, pairs_of(block_), add,
             query_gradient, row_);
  }

  void turned(std::int64_t rows, std::int64_t columns, bool causal, const float* weights,
              const float* factors, std::int64_t distance, bool add, float* gradients) override {
    static_assert(kRows % 2 == 0, "pairs of queries are not divided");
    pack(rows, factors, distance, factors_);
    bf16::pack_pairs(rows, columns, weights, block_, bf16::kPairDistance, turned_weights_);
    for (std::int64_t c = 0; c < columns; c += kRows) {
      const std::int64_t from = causal ? c / 2 : 0;
      multiply(bf16::Order::pairs, std::min(kRows, columns - c), head_, pairs_of(rows) - from,
               turned_weights_ + from * bf16::kPairDistance + c, factors_ + from * bf16::kColumns,
               pairs_of(block_), add, gradients + c * row_, row_);
    }
  }

 private:
  static std::int64_t pairs_of(std::int64_t terms) { return (terms + 1) / 2; }

  /// Of panels of so many terms and columns.
  static std::int64_t panels_size(std::int64_t terms, std::int64_t columns) {
    return (columns + bf16::kColumns - 1) / bf16::kColumns * bf16::kColumns * pairs_of(terms);
  }

  /// Panels of [terms, head], whose rows lie `distance` apart.
  void pack(std::int64_t terms, const float* values, std::int64_t distance, std::uint32_t* panels) const {
    for (std::int64_t j = 0; j < head_; j += bf16::kColumns) {
      bf16::pack_pairs(terms, std::min(bf16::kColumns, head_ - j), values + j, distance, bf16::kColumns,
                       panels + j * pairs_of(block_));
    }
  }

  /// Panels of keys or values [columns, head], transposed.
  void pack_turned(std::int64_t columns, const float* values, std::uint32_t* panels) const {
    for (std::int64_t j = 0; j < columns; j += bf16::kColumns) {
      bf16::pack_pairs_transposed(head_, std::min(bf16::kColumns, columns - j), values + j * row_, row_,
                                  panels + j * pairs_of(head_));
    }
  }

  /// C = A times panels that hold `panel_pairs` pairs each.
  static void multiply(bf16::Order order, std::int64_t rows, std::int64_t columns, std::int64_t pairs,
                       const std::uint32_t* a, const std::uint32_t* panels, std::int64_t panel_pairs,
                       bool add, float* c, std::int64_t ldc) {
    for (std::int64_t j = 0; j < columns; j += bf16::kColumns) {
      bf16::tile(order, rows, std::min(bf16::kColumns, columns - j), pairs, a, panels + j * panel_pairs, add,
                 c + j, ldc);
    }
  }

  std::uint32_t* turned_keys_;     // panels of [head, block]
  std::uint32_t* turned_values_;   // likewise
  std::uint32_t* by_position_;     // panels of [block, head]: values, or keys in backward
  std::uint32_t* factors_;         // likewise
  std::uint32_t* rows_;            // of queries, weights or their gradients
  std::uint32_t* turned_weights_;  // pairs of queries
};

/// Calls work(products) with those of the pass's precision.
template <class Work>
void with_products(const Pass& pass, std::int64_t head, std::int64_t block, std::int64_t row,
                   std::int64_t width, float* memory, Work&& work) {
  if (pass.plan != nullptr) {
    Bf16Products products(head, block, row, width, static_cast<AttentionPlan&>(*pass.plan).memory.data());
    work(products);
  } else {
    Fp32Products products(head, block, row, width, memory);
    work(products);
  }
}

/// Of `columns` keys from `k` on, how many the query at `position` sees.
std::int64_t seen_by(std::int64_t position, std::int64_t k, std::int64_t columns) {
  return std::min(columns, position - k + 1);
}

/// The same for all queries up to `position`, in whole vectors if there are.
std::int64_t vectors_seen_by(std::int64_t position, std::int64_t k, std::int64_t columns) {
  constexpr auto kWhole = static_cast<std::int64_t>(kVector);
  return std::min(columns, (seen_by(position, k, columns) + kWhole - 1) / kWhole * kWhole);
}

/// The largest of a whole number of vectors, or of few values; one of them where some are NaN.
float largest_of(std::span<const float> values) {
  const float* x = values.data();
  const std::size_t count = values.size();
  if (count % kVector != 0) return *std::ranges::max_element(values);
  float lanes[kVector];
  for (std::size_t lane = 0; lane < kVector; ++lane) lanes[lane] = x[lane];
  for (std::size_t i = kVector; i < count; i += kVector) {
    for (std::size_t lane = 0; lane < kVector; ++lane) {
      lanes[lane] = lanes[lane] > x[i + lane] ? lanes[lane] : x[i + lane];
    }
  }
  for (std::size_t half = kVector / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) {
      lanes[lane] = lanes[lane] > lanes[lane + half] ? lanes[lane] : lanes[lane + half];
    }
  }
  return lanes[0];
}

/// Sets what lies behind the first `seen` of a row to minus infinity, whose exponential is 0: loops over all
/// of it have no ragged end.
void mask(std::span<float> row, std::int64_t seen) {
  std::ranges::fill(row.subspan(static_cast<std::size_t>(seen)), -std::numeric_limits<float>::infinity());
}

}  // namespace

CausalAttention::CausalAttention(std::int64_t heads) : heads_(heads) {
  if (heads < 1) throw UsageError(fmt::format("attention needs at least 1 head (got {})", heads));
}

std::string CausalAttention::describe() const {
  return fmt::format("causal attention {} x {}, {} heads", positions_, width_, heads_);
}

Shape CausalAttention::declare(State&, const std::string&, const Shape& input) {
  if (input.size() != 2 || input[1] % (3 * heads_) != 0) {
    throw UsageError(fmt::format(
        "attention of {} heads takes samples [positions, a multiple of {}], queries, keys and values "
        "side by side (got {})",
        heads_, 3 * heads_, to_string(input)));
  }
  positions_ = input[0];
  width_ = input[1] / 3;
  head_ = width_ / heads_;
  return {positions_, width_};
}

// For each position and head: the logarithm of the sum of exponentials.
std::size_t CausalAttention::scratch_size(std::int64_t samples) const {
  return static_cast<std::size_t>(samples * heads_ * positions_);
}

// What each head's pass works with: weights and slopes [block, block], a number for each query, and what
// products in fp32 need.
std::size_t CausalAttention::room_size(std::int64_t) const {
  const std::int64_t block = std::min(kBlock, positions_);
  return static_cast<std::size_t>(2 * block * block + block) + Fp32Products::size(head_, block);
}

std::unique_ptr<Plan> CausalAttention::plan(const Kernels& kernels, std::int64_t) const {
  // Where bf16 is emulated, these products stay fp32.
  if (kernels.precision() != Precision::bf16 || head_ > 2 * bf16::kPairs) return nullptr;
  auto plan = std::make_unique<AttentionPlan>();
  plan->memory.resize(Bf16Products::size(head_, std::min(kBlock, positions_)));
  return plan;
}

std::int64_t CausalAttention::flops_per_sample() const {
  return 2 * positions_ * (positions_ + 1) * width_;  // two products, over half of the pairs
}

void CausalAttention::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                              std::span<float> scratch) const {
  const std::int64_t row = 3 * width_;
  const std::int64_t most = std::min(kBlock, positions_);
  float* log_sums = scratch.data();
  float* all_weights = pass.room.data();
  float* sums = all_weights + 2 * most * most;
  const auto work = [&](Products& products) {
    for (std::int64_t sample = 0; sample < pass.samples; ++sample) {
      for (std::int64_t head = 0; head < heads_; ++head, log_sums += positions_) {
        const float* queries = input.data() + sample * positions_ * row + head * head_;
        const float* keys = queries + width_;
        const float* values = keys + width_;
        float* out = output.data() + sample * positions_ * width_ + head * head_;
        for (std::int64_t q = 0; q < positions_; q += most) {
          const std::int64_t rows = std::min(most, positions_ - q);
          float* largest_so_far = log_sums + q;  // becomes the logarithm at the end
          for (std::int64_t k = 0; k <= q; k += most) {
            const std::int64_t columns = std::min(most, positions_ - k);
            products.see(columns, keys + k * row, values + k * row, false);
            for (std::int64_t r = 0; r < rows; r += kRows) {
              const std::int64_t end = std::min(r + kRows, rows);
              const std::int64_t wide = vectors_seen_by(q + end - 1, k, columns);
              float* weights = all_weights;
              products.scores(end - r, wide, queries + (q + r) * row, weights);
              for (std::int64_t i = r; i < end; ++i, weights += most) {
                const std::span<float> visible(weights, static_cast<std::size_t>(wide));
                mask(visible, seen_by(q + i, k, columns));
                float top = largest_of(visible);  // a NaN shows in the sum
                if (k > 0) {
                  // What was added up so far is rescaled to the new largest.
                  const float before = largest_so_far[i];
                  top = before > top ? before : top;
                  const float factor = std::exp(before - top);
                  sums[i] *= factor;
                  float* to = out + (q + i) * width_;
                  for (std::int64_t j = 0; j < head_; ++j) to[j] *= factor;
                } else {
                  sums[i] = 0;
                }
                sums[i] += exp_and_sum(visible, top);
                largest_so_far[i] = top;
              }
              products.mix(end - r, seen_by(q + end - 1, k, columns), all_weights, k > 0,
                           out + (q + r) * width_);
            }
          }
          for (std::int64_t i = 0; i < rows; ++i) {
            const float share = 1.0F / sums[i];
            float* to = out + (q + i) * width_;
            for (std::int64_t j = 0; j < head_; ++j) to[j] *= share;
            largest_so_far[i] += std::log(sums[i]);
          }
        }
      }
    }
  };
  with_products(pass, head_, most, row, width_, sums + most, work);
}

void CausalAttention::backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                               std::span<float> output_gradient, std::span<float> input_gradient,
                               std::span<float>, std::span<float> scratch) const {
  if (input_gradient.empty()) return;
  const std::int64_t row = 3 * width_;
  const std::int64_t most = std::min(kBlock, positions_);
  const float* log_sums = scratch.data();
  float* all_weights = pass.room.data();
  float* all_slopes = all_weights + most * most;
  float* along = all_slopes + most * most;
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_));
  const auto work = [&](Products& products) {
    for (std::int64_t sample = 0; sample < pass.samples; ++sample) {
      for (std::int64_t head = 0; head < heads_; ++head, log_sums += positions_) {
        const float* queries = input.data() + sample * positions_ * row + head * head_;
        const float* keys = queries + width_;
        const float* values = keys + width_;
        const float* out = output.data() + sample * positions_ * width_ + head * head_;
        const float* out_gradient = output_gradient.data() + sample * positions_ * width_ + head * head_;
        float* query_gradient = input_gradient.data() + sample * positions_ * row + head * head_;
        float* key_gradient = query_gradient + width_;
        float* value_gradient = key_gradient + width_;
        for (std::int64_t q = 0; q < positions_; q += most) {
          const std::int64_t rows = std::min(most, positions_ - q);
          for (std::int64_t i = 0; i < rows; ++i) {
            const float* a = out + (q + i) * width_;
            const float* b = out_gradient + (q + i) * width_;
            along[i] = lane_sum(static_cast<std::size_t>(head_), [&](std::size_t j) { return a[j] * b[j]; });
          }
          for (std::int64_t k = 0; k <= q; k += most) {
            const std::int64_t columns = std::min(most, positions_ - k);
            products.see(columns, keys + k * row, values + k * row, true);
            for (std::int64_t r = 0; r < rows; r += kRows) {
              const std::int64_t end = std::min(r + kRows, rows);
              const std::int64_t wide = vectors_seen_by(q + end - 1, k, columns);
              float* weights = all_weights + r * most;
              float* slopes = all_slopes + r * most;
              products.scores(end - r, wide, queries + (q + r) * row, weights);
              products.slopes(end - r, wide, out_gradient + (q + r) * width_, slopes);
              for (std::int64_t i = r; i < end; ++i, weights += most, slopes += most) {
                const std::span<float> visible(weights, static_cast<std::size_t>(wide));
                mask(visible, seen_by(q + i, k, columns));
                exp_and_sum(visible, log_sums[q + i]);
                const float* __restrict weight = weights;
                float* __restrict slope = slopes;
                const float shift = along[i];
                // 0 where the weight is.
                for (std::int64_t j = 0; j < wide; ++j) slope[j] = weight[j] * (slope[j] - shift) * scale;
              }
              products.query_gradients(end - r, seen_by(q + end - 1, k, columns), all_slopes + r * most,
                                       k > 0, query_gradient + (q + r) * row);
            }
            // Of the same positions, the first queries do not see the last keys. The first block of queries
            // that sees these keys at all is that of the same positions.
            products.turned(rows, columns, q == k, all_weights, out_gradient + q * width_, width_, k < q,
                            value_gradient + k * row);
            products.turned(rows, columns, q == k, all_slopes, queries + q * row, row, k < q,
                            key_gradient + k * row);
          }
        }
      }
    }
  };
  with_products(pass, head_, most, row, width_, along + most, work);
}

}  // namespace lockstep
