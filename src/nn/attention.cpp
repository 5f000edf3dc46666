#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/attention.hpp>
#include <lockstep/nn/elementwise.hpp>

namespace lockstep {
namespace {

constexpr std::int64_t kBlock = 128;  // positions of queries and of keys that are multiplied at once

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

// For each position and head: the logarithm of the sum of exponentials. Then room for two blocks of weights,
// and one number for each position of a block.
std::size_t CausalAttention::scratch_size(std::int64_t samples) const {
  const std::int64_t block = std::min(kBlock, positions_);
  return static_cast<std::size_t>(samples * heads_ * positions_ + 2 * block * block + block);
}

std::int64_t CausalAttention::flops_per_sample() const {
  return 2 * positions_ * (positions_ + 1) * width_;  // two products, over half of the pairs
}

void CausalAttention::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                              std::span<float> scratch) const {
  const std::int64_t row = 3 * width_;
  const std::int64_t most = std::min(kBlock, positions_);
  float* log_sums = scratch.data();
  float* weights = scratch.data() + pass.samples * heads_ * positions_;
  float* sums = weights + 2 * most * most;
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
          pass.kernels.gemm(Transpose::no, Transpose::yes, rows, columns, head_, queries + q * row, row,
                            keys + k * row, row, false, weights, columns);
          for (std::int64_t i = 0; i < rows; ++i) {
            const std::int64_t seen = std::min(columns, q + i - k + 1);
            const std::span<float> w(weights + i * columns, static_cast<std::size_t>(columns));
            const auto visible = w.first(static_cast<std::size_t>(seen));
            for (float& x : visible) x *= scale;
            float top = largest(visible);
            if (k > 0) {
              // What was added up so far is rescaled to the new largest.
              const float before = largest_so_far[i];
              top = before > top || before != before ? before : top;
              const float factor = std::exp(before - top);
              sums[i] *= factor;
              float* to = out + (q + i) * width_;
              for (std::int64_t j = 0; j < head_; ++j) to[j] *= factor;
            } else {
              sums[i] = 0;
            }
            sums[i] += exp_and_sum(visible, top);
            std::ranges::fill(w.subspan(visible.size()), 0.0F);
            largest_so_far[i] = top;
          }
          pass.kernels.gemm(Transpose::no, Transpose::no, rows, head_, columns, weights, columns,
                            values + k * row, row, k > 0, out + q * width_, width_);
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
  float* weights = scratch.data() + pass.samples * heads_ * positions_;
  float* slopes = weights + most * most;
  float* along = slopes + most * most;
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
          float dot = 0;
          for (std::int64_t j = 0; j < head_; ++j) {
            dot += out[(q + i) * width_ + j] * out_gradient[(q + i) * width_ + j];
          }
          along[i] = dot;
        }
        for (std::int64_t k = 0; k <= q; k += most) {
          const std::int64_t columns = std::min(most, positions_ - k);
          pass.kernels.gemm(Transpose::no, Transpose::yes, rows, columns, head_, queries + q * row, row,
                            keys + k * row, row, false, weights, columns);
          pass.kernels.gemm(Transpose::no, Transpose::yes, rows, columns, head_, out_gradient + q * width_,
                            width_, values + k * row, row, false, slopes, columns);
          for (std::int64_t i = 0; i < rows; ++i) {
            const std::int64_t seen = std::min(columns, q + i - k + 1);
            const std::span<float> w(weights + i * columns, static_cast<std::size_t>(columns));
            const std::span<float> s(slopes + i * columns, static_cast<std::size_t>(columns));
            const auto visible = w.first(static_cast<std::size_t>(seen));
            for (float& x : visible) x *= scale;
            exp_and_sum(visible, log_sums[q + i]);
            const float* weight = visible.data();
            float* slope = s.data();
            for (std::int64_t j = 0; j < seen; ++j) slope[j] = weight[j] * (slope[j] - along[i]) * scale;
            std::ranges::fill(w.subspan(visible.size()), 0.0F);
            std::ranges::fill(s.subspan(visible.size()), 0.0F);
          }
          // The first block of queries that sees these keys is that of the same positions.
          pass.kernels.gemm(Transpose::yes, Transpose::no, columns, head_, rows, weights, columns,
                            out_gradient + q * width_, width_, k < q, value_gradient + k * row, row);
          pass.kernels.gemm(Transpose::yes, Transpose::no, columns, head_, rows, slopes, columns,
                            queries + q * row, row, k < q, key_gradient + k * row, row);
          pass.kernels.gemm(Transpose::no, Transpose::no, rows, head_, columns, slopes, columns,
                            keys + k * row, row, k > 0, query_gradient + q * row, row);
        }
      }
    }
  }
}

}  // namespace lockstep
