#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/attention.hpp>
#include <lockstep/nn/elementwise.hpp>

#include "small_product.hpp"

namespace lockstep {
namespace {

constexpr std::int64_t kBlock = 128;  // positions of queries and of keys that are worked on at once
constexpr std::int64_t kRows = 8;     // of a block that are taken together: they see nearly the same keys
constexpr std::size_t kVector = 16;

/// What each head's pass works with, beside the logarithms of its sums.
struct Room {
  float* weights;      // [block, block]
  float* slopes;       // [block, block]
  float* keys;         // [head, block]: transposed, times the scale
  float* values;       // [head, block]: transposed
  float* row_numbers;  // [block]

  static std::size_t size(std::int64_t block, std::int64_t head) {
    return static_cast<std::size_t>(2 * block * block + 2 * head * block + block);
  }

  Room(float* memory, std::int64_t block, std::int64_t head)
      : weights(memory),
        slopes(weights + block * block),
        keys(slopes + block * block),
        values(keys + head * block),
        row_numbers(values + head * block) {}
};

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

// For each position and head: the logarithm of the sum of exponentials. Then room for one head's blocks.
std::size_t CausalAttention::scratch_size(std::int64_t samples) const {
  return static_cast<std::size_t>(samples * heads_ * positions_) +
         Room::size(std::min(kBlock, positions_), head_);
}

std::int64_t CausalAttention::flops_per_sample() const {
  return 2 * positions_ * (positions_ + 1) * width_;  // two products, over half of the pairs
}

void CausalAttention::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                              std::span<float> scratch) const {
  const std::int64_t row = 3 * width_;
  const std::int64_t most = std::min(kBlock, positions_);
  float* log_sums = scratch.data();
  const Room room(scratch.data() + pass.samples * heads_ * positions_, most, head_);
  float* sums = room.row_numbers;
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_));
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
          turn(columns, head_, keys + k * row, row, scale, most, room.keys);
          for (std::int64_t r = 0; r < rows; r += kRows) {
            const std::int64_t end = std::min(r + kRows, rows);
            const std::int64_t wide = vectors_seen_by(q + end - 1, k, columns);
            float* weights = room.weights;
            small_product(end - r, wide, head_, {queries + (q + r) * row, row, 1}, room.keys, most, false,
                          weights, most);
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
            small_product(end - r, head_, seen_by(q + end - 1, k, columns), {room.weights, most, 1},
                          values + k * row, row, k > 0, out + (q + r) * width_, width_);
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
}

void CausalAttention::backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                               std::span<float> output_gradient, std::span<float> input_gradient,
                               std::span<float>, std::span<float> scratch) const {
  if (input_gradient.empty()) return;
  const std::int64_t row = 3 * width_;
  const std::int64_t most = std::min(kBlock, positions_);
  const float* log_sums = scratch.data();
  const Room room(scratch.data() + pass.samples * heads_ * positions_, most, head_);
  float* along = room.row_numbers;
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_));
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
          turn(columns, head_, keys + k * row, row, scale, most, room.keys);
          turn(columns, head_, values + k * row, row, 1, most, room.values);
          for (std::int64_t r = 0; r < rows; r += kRows) {
            const std::int64_t end = std::min(r + kRows, rows);
            const std::int64_t wide = vectors_seen_by(q + end - 1, k, columns);
            float* weights = room.weights + r * most;
            float* slopes = room.slopes + r * most;
            small_product(end - r, wide, head_, {queries + (q + r) * row, row, 1}, room.keys, most, false,
                          weights, most);
            small_product(end - r, wide, head_, {out_gradient + (q + r) * width_, width_, 1}, room.values,
                          most, false, slopes, most);
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
            small_product(end - r, head_, seen_by(q + end - 1, k, columns), {room.slopes + r * most, most, 1},
                          keys + k * row, row, k > 0, query_gradient + (q + r) * row, row);
          }
          // Of the same positions, the first queries do not see the last keys. The first block of queries
          // that sees these keys at all is that of the same positions.
          for (std::int64_t c = 0; c < columns; c += kRows) {
            const std::int64_t count = std::min(kRows, columns - c);
            const std::int64_t from = q == k ? c / kRows * kRows : 0;
            const std::int64_t at = from * most + c;
            small_product(count, head_, rows - from, {room.weights + at, 1, most},
                          out_gradient + (q + from) * width_, width_, k < q, value_gradient + (k + c) * row,
                          row);
            small_product(count, head_, rows - from, {room.slopes + at, 1, most}, queries + (q + from) * row,
                          row, k < q, key_gradient + (k + c) * row, row);
          }
        }
      }
    }
  }
}

}  // namespace lockstep
