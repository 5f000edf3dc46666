#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/attention.hpp>

#include "approximations.hpp"
#include "bf16_tiles.hpp"
#include "small_product.hpp"
#include "vectors.hpp"

namespace lockstep {
namespace {

// Queries are worked on in groups, side by side: weights are [keys, kLanes], so what a query takes from all
// its keys (largest, sum) runs along vectors, not across them.
constexpr std::int64_t kLanes = 32;
static_assert(kLanes == bf16::kColumns && kLanes == 2 * kVectorLanes);

/// The products of one head. Rows of queries, keys and values lie `row` apart, those of outputs `width`.
class Products {
 public:
  Products(std::int64_t head, std::int64_t row, std::int64_t width) : head_(head), row_(row), width_(width) {}
  virtual ~Products() = default;

  /// The keys and values that all others speak of.
  virtual void see(std::int64_t positions, const float* keys, const float* values, bool backward) = 0;

  /// Up to kLanes queries, likewise, and the gradients of their outputs or null.
  virtual void take(std::int64_t count, const float* queries, const float* output_gradient) = 0;

  /// scores [seen, kLanes] = the first `seen` keys times queries. Lanes without a query get any value.
  virtual void scores(std::int64_t seen, float* scores) = 0;

  /// slopes [seen, kLanes] = values times output gradients.
  virtual void slopes(std::int64_t seen, float* slopes) = 0;

  /// output [queries, head] = weights, transposed, times values.
  virtual void mix(std::int64_t seen, const float* weights, float* output) = 0;

  /// query gradients = slopes, transposed, times keys.
  virtual void query_gradient(std::int64_t seen, const float* slopes, float* gradient) = 0;

  /// For keys [begin, end): value gradients = weights times output gradients, plus what is there if `add`.
  virtual void value_gradient(std::int64_t begin, std::int64_t end, const float* weights, bool add,
                              float* gradient) = 0;

  /// Likewise key gradients = slopes times queries.
  virtual void key_gradient(std::int64_t begin, std::int64_t end, const float* slopes, bool add,
                            float* gradient) = 0;

 protected:
  std::int64_t head_, row_, width_;
  std::int64_t count_ = 0;
};

class Fp32Products final : public Products {
 public:
  static std::size_t size(std::int64_t head) { return static_cast<std::size_t>(2 * head * kLanes); }

  Fp32Products(std::int64_t head, std::int64_t row, std::int64_t width, float* memory)
      : Products(head, row, width), turned_queries_(memory), turned_slopes_(memory + head * kLanes) {}

  void see(std::int64_t, const float* keys, const float* values, bool) override {
    keys_ = keys;
    values_ = values;
  }

  void take(std::int64_t count, const float* queries, const float* output_gradient) override {
    count_ = count;
    queries_ = queries;
    output_gradient_ = output_gradient;
    turn(queries, row_, turned_queries_);
    if (output_gradient != nullptr) turn(output_gradient, width_, turned_slopes_);
  }

  void scores(std::int64_t seen, float* scores) override {
    small_product(seen, kLanes, head_, {keys_, row_, 1}, turned_queries_, kLanes, false, scores, kLanes);
  }

  void slopes(std::int64_t seen, float* slopes) override {
    small_product(seen, kLanes, head_, {values_, row_, 1}, turned_slopes_, kLanes, false, slopes, kLanes);
  }

  void mix(std::int64_t seen, const float* weights, float* output) override {
    small_product(count_, head_, seen, {weights, 1, kLanes}, values_, row_, false, output, width_);
  }

  void query_gradient(std::int64_t seen, const float* slopes, float* gradient) override {
    small_product(count_, head_, seen, {slopes, 1, kLanes}, keys_, row_, false, gradient, row_);
  }

  void value_gradient(std::int64_t begin, std::int64_t end, const float* weights, bool add,
                      float* gradient) override {
    small_product(end - begin, head_, count_, {weights + begin * kLanes, kLanes, 1}, output_gradient_, width_,
                  add, gradient + begin * row_, row_);
  }

  void key_gradient(std::int64_t begin, std::int64_t end, const float* slopes, bool add,
                    float* gradient) override {
    small_product(end - begin, head_, count_, {slopes + begin * kLanes, kLanes, 1}, queries_, row_, add,
                  gradient + begin * row_, row_);
  }

 private:
  /// to [head, kLanes] = from [count, head], transposed, and zeros.
  void turn(const float* __restrict from, std::int64_t distance, float* __restrict to) const {
    constexpr std::int64_t kTile = 16;
    for (std::int64_t j = 0; j < head_; j += kTile) {
      for (std::int64_t i = 0; i < kLanes; i += kTile) {
        if (i + kTile > count_ || j + kTile > head_) {
          for (std::int64_t y = j; y < std::min(j + kTile, head_); ++y) {
            for (std::int64_t x = i; x < i + kTile; ++x) {
              to[y * kLanes + x] = x < count_ ? from[x * distance + y] : 0.0F;
            }
          }
          continue;
        }
        float tile[kTile][kTile];
        for (std::int64_t x = 0; x < kTile; ++x) {
          for (std::int64_t y = 0; y < kTile; ++y) tile[y][x] = from[(i + x) * distance + j + y];
        }
        for (std::int64_t y = 0; y < kTile; ++y) {
          for (std::int64_t x = 0; x < kTile; ++x) to[(j + y) * kLanes + i + x] = tile[y][x];
        }
      }
    }
  }

  float* turned_queries_;  // [head, kLanes]
  float* turned_slopes_;   // likewise, of output gradients
  const float* keys_ = nullptr;
  const float* values_ = nullptr;
  const float* queries_ = nullptr;
  const float* output_gradient_ = nullptr;
};

/// Memory of packed operands.
struct alignas(64) Line {
  std::uint32_t pairs[16];
};

struct AttentionPlan final : Plan {
  std::vector<Line> memory;
};

class Bf16Products final : public Products {
 public:
  /// Lines.
  static std::size_t size(std::int64_t head, std::int64_t positions) {
    const std::int64_t pairs = 2 * panels_size(head, positions) + panels_size(positions, head) +
                               2 * panels_size(head, kLanes) + 2 * panels_size(kLanes, head) +
                               panels_size(positions, kLanes) + bf16::kRows * bf16::kRowDistance;
    return static_cast<std::size_t>(pairs) / 16;
  }

  Bf16Products(std::int64_t head, std::int64_t positions, std::int64_t row, std::int64_t width, Line* memory)
      : Products(head, row, width),
        positions_(positions),
        turned_keys_(memory->pairs),
        turned_values_(turned_keys_ + panels_size(head, positions)),
        by_position_(turned_values_ + panels_size(head, positions)),
        turned_queries_(by_position_ + panels_size(positions, head)),
        turned_slopes_(turned_queries_ + panels_size(head, kLanes)),
        queries_(turned_slopes_ + panels_size(head, kLanes)),
        slopes_(queries_ + panels_size(kLanes, head)),
        weights_(slopes_ + panels_size(kLanes, head)),
        rows_(weights_ + panels_size(positions, kLanes)) {}

  void see(std::int64_t, const float* keys, const float* values, bool backward) override {
    pack_turned(positions_, keys, row_, turned_keys_);
    pack(positions_, backward ? keys : values, row_, pairs_of(positions_), by_position_);
    if (backward) pack_turned(positions_, values, row_, turned_values_);
  }

  void take(std::int64_t count, const float* queries, const float* output_gradient) override {
    count_ = count;
    pack_turned(count, queries, row_, turned_queries_);
    if (output_gradient == nullptr) return;
    pack_turned(count, output_gradient, width_, turned_slopes_);
    pack(count, queries, row_, pairs_of(kLanes), queries_);
    pack(count, output_gradient, width_, pairs_of(kLanes), slopes_);
  }

  void scores(std::int64_t seen, float* scores) override {
    across(seen, turned_keys_, turned_queries_, scores);
  }

  void slopes(std::int64_t seen, float* slopes) override {
    across(seen, turned_values_, turned_slopes_, slopes);
  }

  void mix(std::int64_t seen, const float* weights, float* output) override {
    along(seen, weights, output, width_);
  }

  void query_gradient(std::int64_t seen, const float* slopes, float* gradient) override {
    along(seen, slopes, gradient, row_);
  }

  void value_gradient(std::int64_t begin, std::int64_t end, const float* weights, bool add,
                      float* gradient) override {
    to_positions(begin, end, weights, slopes_, add, gradient);
  }

  void key_gradient(std::int64_t begin, std::int64_t end, const float* slopes, bool add,
                    float* gradient) override {
    to_positions(begin, end, slopes, queries_, add, gradient);
  }

 private:
  static std::int64_t pairs_of(std::int64_t terms) { return (terms + 1) / 2; }

  /// Of panels of so many terms and columns.
  static std::int64_t panels_size(std::int64_t terms, std::int64_t columns) {
    return (columns + kLanes - 1) / kLanes * kLanes * pairs_of(terms);
  }

  /// Panels of [terms, head], whose rows lie `distance` apart, with room for `pairs` of terms each.
  void pack(std::int64_t terms, const float* values, std::int64_t distance, std::int64_t pairs,
            std::uint32_t* panels) const {
    for (std::int64_t j = 0; j < head_; j += kLanes) {
      bf16::pack_pairs(terms, std::min(kLanes, head_ - j), values + j, distance, kLanes, panels + j * pairs);
    }
  }

  /// Panels of [columns, head], transposed.
  void pack_turned(std::int64_t columns, const float* values, std::int64_t distance,
                   std::uint32_t* panels) const {
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      bf16::pack_pairs_transposed(head_, std::min(kLanes, columns - j), values + j * distance, distance,
                                  panels + j * pairs_of(head_));
    }
  }

  /// work(begin, count) for pieces of rows [begin, end) that make a tile.
  template <class Work>
  static void for_tiles(std::int64_t begin, std::int64_t end, Work&& work) {
    const std::int64_t rows = end - begin;
    const std::int64_t tiles = (rows + bf16::kRows - 1) / bf16::kRows;
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t first = rows * t / tiles;
      work(begin + first, rows * (t + 1) / tiles - first);
    }
  }

  /// to [seen, kLanes] = positions (panels) times a panel of the queries' group.
  void across(std::int64_t seen, const std::uint32_t* positions, const std::uint32_t* group,
              float* to) const {
    const std::int64_t pairs = pairs_of(head_);
    for (std::int64_t p = 0; p < seen; p += kLanes) {
      for_tiles(0, std::min(kLanes, seen - p), [&](std::int64_t begin, std::int64_t rows) {
        bf16::tile(bf16::Order::panel, rows, count_, pairs, positions + p * pairs + begin, group, false, {},
                   to + (p + begin) * kLanes, kLanes);
      });
    }
  }

  /// to [queries, head] = weights [seen, kLanes], transposed, times what is packed by position.
  void along(std::int64_t seen, const float* weights, float* to, std::int64_t distance) {
    bf16::pack_pairs(seen, kLanes, weights, kLanes, kLanes, weights_);
    for_tiles(0, count_, [&](std::int64_t begin, std::int64_t rows) {
      for (std::int64_t j = 0; j < head_; j += kLanes) {
        bf16::tile(bf16::Order::panel, rows, std::min(kLanes, head_ - j), pairs_of(seen), weights_ + begin,
                   by_position_ + j * pairs_of(positions_), false, {}, to + begin * distance + j, distance);
      }
    });
  }

  /// gradients of positions [begin, end) = weights times factors of the queries' group.
  void to_positions(std::int64_t begin, std::int64_t end, const float* weights, const std::uint32_t* factors,
                    bool add, float* gradient) {
    for_tiles(begin, end, [&](std::int64_t first, std::int64_t rows) {
      bf16::pack_rows(rows, count_, weights + first * kLanes, kLanes, rows_);
      for (std::int64_t j = 0; j < head_; j += kLanes) {
        bf16::tile(bf16::Order::rows, rows, std::min(kLanes, head_ - j), pairs_of(count_), rows_,
                   factors + j * pairs_of(kLanes), add, {}, gradient + first * row_ + j, row_);
      }
    });
  }

  std::int64_t positions_;
  std::uint32_t* turned_keys_;     // panels of [head, positions]
  std::uint32_t* turned_values_;   // likewise
  std::uint32_t* by_position_;     // panels of [positions, head]: values, or keys in backward
  std::uint32_t* turned_queries_;  // a panel of [head, kLanes]
  std::uint32_t* turned_slopes_;   // likewise, of output gradients
  std::uint32_t* queries_;         // panels of [kLanes, head]
  std::uint32_t* slopes_;          // likewise, of output gradients
  std::uint32_t* weights_;         // a panel of [positions, kLanes]
  std::uint32_t* rows_;            // of weights
};

/// What a group of queries has: a number each.
struct Group {
  Vector half[2] = {};
};

std::int64_t groups_of(std::int64_t positions) {
  return (positions + kLanes - 1) / kLanes;
}

/// Query i of the group does not see keys behind first + i: their scores become minus infinity.
void mask(std::int64_t first, std::int64_t seen, float* scores) {
  for (std::int64_t j = first; j < seen; ++j) {
    float* of_key = scores + j * kLanes;
    for (std::int64_t i = 0; i < kLanes; ++i) {
      of_key[i] = i < j - first ? -std::numeric_limits<float>::infinity() : of_key[i];
    }
  }
}

/// The largest of each query's; of a NaN and another, any.
Group largest_of(std::int64_t seen, const float* scores) {
  Group top{load<Vector>(scores), load<Vector>(scores + kVectorLanes)};
  for (std::int64_t j = 1; j < seen; ++j) {
    for (std::int64_t h = 0; h < 2; ++h) {
      const auto score = load<Vector>(scores + j * kLanes + h * kVectorLanes);
      top.half[h] = score > top.half[h] ? score : top.half[h];
    }
  }
  return top;
}

/// weights = e^((scores - top) * scale) * share
void exponentials(std::int64_t seen, const float* top, float scale, const float* share, float* weights) {
  float its_top[kLanes];
  float its_share[kLanes];
  std::copy_n(top, kLanes, its_top);
  std::copy_n(share, kLanes, its_share);
  for (std::int64_t j = 0; j < seen; ++j) {
    float* of_key = weights + j * kLanes;
    for (std::int64_t i = 0; i < kLanes; ++i) {
      of_key[i] = fast_exp_below_zero((of_key[i] - its_top[i]) * scale) * its_share[i];
    }
  }
}

/// Each query's sum of term(key, half): first those of kLanes keys each.
template <class Term>
Group sums_of(std::int64_t seen, Term&& term) {
  Group sums;
  for (std::int64_t begin = 0; begin < seen; begin += kLanes) {
    Group some;
    for (std::int64_t j = begin; j < std::min(begin + kLanes, seen); ++j) {
      for (std::int64_t h = 0; h < 2; ++h) some.half[h] += term(j * kLanes + h * kVectorLanes);
    }
    for (std::int64_t h = 0; h < 2; ++h) sums.half[h] += some.half[h];
  }
  return sums;
}

/// From those of the weights to those of the scores before the scale: 0 where the weight is.
void slopes_of_scores(std::int64_t seen, float scale, const float* weights, float* slopes) {
  const Group along =
      sums_of(seen, [&](std::int64_t at) { return load<Vector>(weights + at) * load<Vector>(slopes + at); });
  for (std::int64_t j = 0; j < seen; ++j) {
    for (std::int64_t h = 0; h < 2; ++h) {
      const std::int64_t at = j * kLanes + h * kVectorLanes;
      store(load<Vector>(weights + at) * (load<Vector>(slopes + at) - along.half[h]) * scale, slopes + at);
    }
  }
}

/// Where queries and outputs of a head, and of the next one, begin.
struct Head {
  std::int64_t in, out, next_in, next_out;
};

/// Asks for rows that are needed soon: those of a head lie far apart, and the CPU does not see what follows.
void ask_for(const float* rows, std::int64_t count, std::int64_t head, std::int64_t distance) {
  constexpr std::int64_t kCacheLine = 16;
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t j = 0; j < head; j += kCacheLine) __builtin_prefetch(rows + i * distance + j, 0, 2);
  }
}

void put(const Group& group, float* to) {
  for (std::int64_t h = 0; h < 2; ++h) store(group.half[h], to + h * kVectorLanes);
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

// For each group of queries of a head: their largest scores, and 1 / the sums of their exponentials.
std::size_t CausalAttention::scratch_size(std::int64_t samples) const {
  return static_cast<std::size_t>(samples * heads_ * 2 * kLanes * groups_of(positions_));
}

// Weights and slopes [positions, kLanes], and what products in fp32 need.
std::size_t CausalAttention::room_size(std::int64_t) const {
  return static_cast<std::size_t>(2 * positions_ * kLanes) + Fp32Products::size(head_);
}

std::unique_ptr<Plan> CausalAttention::plan(const Kernels& kernels, std::int64_t) const {
  // Where bf16 is emulated, these products stay fp32.
  if (kernels.precision() != Precision::bf16 || head_ > 2 * bf16::kPairs) return nullptr;
  auto plan = std::make_unique<AttentionPlan>();
  plan->memory.resize(Bf16Products::size(head_, positions_));
  return plan;
}

std::int64_t CausalAttention::flops_per_sample() const {
  return 2 * positions_ * (positions_ + 1) * width_;  // two products, over half of the pairs
}

template <class Work>
void CausalAttention::for_heads(const Pass& pass, std::span<float> scratch, Work&& work) const {
  const std::int64_t row = 3 * width_;
  float* memory = pass.room.data() + 2 * positions_ * kLanes;
  const auto all = [&](Products& products) {
    const std::int64_t heads = pass.samples * heads_;
    const auto place = [&](std::int64_t n, std::int64_t distance) {
      return n / heads_ * positions_ * distance + n % heads_ * head_;
    };
    for (std::int64_t n = 0; n < heads; ++n) {
      const std::int64_t next = std::min(n + 1, heads - 1);
      work(products, scratch.data() + n * 2 * kLanes * groups_of(positions_),
           Head{place(n, row), place(n, width_), place(next, row), place(next, width_)});
    }
  };
  if (pass.plan != nullptr) {
    Bf16Products products(head_, positions_, row, width_,
                          static_cast<AttentionPlan&>(*pass.plan).memory.data());
    all(products);
  } else {
    Fp32Products products(head_, row, width_, memory);
    all(products);
  }
}

void CausalAttention::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                              std::span<float> scratch) const {
  const std::int64_t row = 3 * width_;
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_));
  float* weights = pass.room.data();
  float ones[kLanes];
  std::ranges::fill(ones, 1.0F);
  for_heads(pass, scratch, [&](Products& products, float* kept, const Head& head) {
    const float* queries = input.data() + head.in;
    products.see(positions_, queries + width_, queries + 2 * width_, false);
    for (std::int64_t q = 0; q < positions_; q += kLanes, kept += 2 * kLanes) {
      const std::int64_t count = std::min(kLanes, positions_ - q);
      const std::int64_t seen = q + count;
      float* share = kept + kLanes;
      for (std::int64_t part = 0; part < 3; ++part) {
        ask_for(input.data() + head.next_in + part * width_ + q * row, count, head_, row);
      }
      products.take(count, queries + q * row, nullptr);
      products.scores(seen, weights);
      mask(q, seen, weights);
      put(largest_of(seen, weights), kept);
      exponentials(seen, kept, scale, ones, weights);
      put(sums_of(seen, [&](std::int64_t at) { return load<Vector>(weights + at); }), share);
      for (std::int64_t i = 0; i < kLanes; ++i) share[i] = 1.0F / share[i];
      float* to = output.data() + head.out + q * width_;
      products.mix(seen, weights, to);
      for (std::int64_t i = 0; i < count; ++i, to += width_) {
        for (std::int64_t j = 0; j < head_; ++j) to[j] *= share[i];
      }
    }
  });
}

void CausalAttention::backward(const Pass& pass, std::span<const float> input, std::span<const float>,
                               std::span<float> output_gradient, std::span<float> input_gradient,
                               std::span<float>, std::span<float> scratch) const {
  if (input_gradient.empty()) return;
  const std::int64_t row = 3 * width_;
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_));
  float* weights = pass.room.data();
  float* slopes = weights + positions_ * kLanes;
  for_heads(pass, scratch, [&](Products& products, const float* kept, const Head& head) {
    const float* queries = input.data() + head.in;
    float* query_gradient = input_gradient.data() + head.in;
    products.see(positions_, queries + width_, queries + 2 * width_, true);
    for (std::int64_t q = 0; q < positions_; q += kLanes, kept += 2 * kLanes) {
      const std::int64_t count = std::min(kLanes, positions_ - q);
      const std::int64_t seen = q + count;
      for (std::int64_t part = 0; part < 3; ++part) {
        ask_for(input.data() + head.next_in + part * width_ + q * row, count, head_, row);
      }
      ask_for(output_gradient.data() + head.next_out + q * width_, count, head_, width_);
      products.take(count, queries + q * row, output_gradient.data() + head.out + q * width_);
      products.scores(seen, weights);
      mask(q, seen, weights);
      exponentials(seen, kept, scale, kept + kLanes, weights);
      products.slopes(seen, slopes);
      slopes_of_scores(seen, scale, weights, slopes);
      products.query_gradient(seen, slopes, query_gradient + q * row);
      // These queries are the first that see the keys of their own positions.
      for (const bool add : {true, false}) {
        const std::int64_t begin = add ? 0 : q;
        const std::int64_t end = add ? q : seen;
        products.key_gradient(begin, end, slopes, add, query_gradient + width_);
        products.value_gradient(begin, end, weights, add, query_gradient + 2 * width_);
      }
    }
  });
}

}  // namespace lockstep
