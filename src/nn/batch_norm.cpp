#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/batch_norm.hpp>
#include <lockstep/nn/elementwise.hpp>

namespace lockstep {
namespace {

constexpr std::size_t kBlock = 64;  // rows that are summed before the sum of sums takes them in

/// sums[c] = term(row, c) over all rows, in blocks of kBlock rows. `block` has room for one float a channel.
template <class Term>
void channel_sums(std::size_t rows, std::size_t channels, float* __restrict block, float* __restrict sums,
                  double share, Term&& term) {
  float* __restrict low = block + channels;
  std::fill_n(sums, channels, 0.0F);
  std::fill_n(low, channels, 0.0F);
  for (std::size_t begin = 0; begin < rows; begin += kBlock) {
    const std::size_t end = std::min(rows, begin + kBlock);
    std::fill_n(block, channels, 0.0F);
    for (std::size_t row = begin; row < end; ++row) {
      for (std::size_t c = 0; c < channels; ++c) block[c] += term(row, c);
    }
    for (std::size_t c = 0; c < channels; ++c) {  // Kahan's sum
      const float add = block[c] - low[c];
      const float sum = sums[c] + add;
      low[c] = (sum - sums[c]) - add;
      sums[c] = sum;
    }
  }
  for (std::size_t c = 0; c < channels; ++c)
    sums[c] = static_cast<float>(static_cast<double>(sums[c]) * share);
}

}  // namespace

BatchNorm::BatchNorm(Then then, float momentum, float epsilon)
    : then_(then), momentum_(momentum), epsilon_(epsilon) {
  if (!(momentum >= 0 && momentum <= 1) || !(epsilon > 0)) {
    throw UsageError(fmt::format(
        "a batch norm has a momentum from 0 to 1 and an epsilon above 0 (got {}, {})", momentum, epsilon));
  }
}

std::string BatchNorm::describe() const {
  return fmt::format("batch norm {}{}", channels_, then_ == Then::relu ? ", relu" : "");
}

Shape BatchNorm::declare(State& state, const std::string& name, const Shape& input) {
  if (input.empty()) throw UsageError("a batch norm needs an input of at least one dimension");
  channels_ = static_cast<std::size_t>(input.back());
  scale_ = state.parameter(name + "/scale", {input.back()});
  shift_ = state.parameter(name + "/shift", {input.back()});
  running_mean_ = state.buffer(name + "/running_mean", {input.back()});
  running_variance_ = state.buffer(name + "/running_variance", {input.back()});
  return input;
}

void BatchNorm::initialize(const State&, std::uint64_t) const {
  std::ranges::fill(scale_.values(), 1.0F);
  std::ranges::fill(shift_.values(), 0.0F);
  std::ranges::fill(running_mean_.values(), 0.0F);
  std::ranges::fill(running_variance_.values(), 1.0F);
}

// For each channel: mean, 1 / deviation, two sums of backward, and two for the summing.
std::size_t BatchNorm::scratch_size(std::int64_t) const {
  return 6 * channels_;
}

void BatchNorm::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                        std::span<float> scratch) const {
  const std::size_t rows = output.size() / channels_;
  const float* __restrict x = input.data();
  float* __restrict mean = scratch.data();
  float* __restrict inverse = mean + channels_;
  float* block = scratch.data() + 4 * channels_;
  if (pass.training) {
    const double share = 1.0 / static_cast<double>(rows);
    channel_sums(rows, channels_, block, mean, share,
                 [&](std::size_t row, std::size_t c) { return x[row * channels_ + c]; });
    channel_sums(rows, channels_, block, inverse, share, [&](std::size_t row, std::size_t c) {
      const float d = x[row * channels_ + c] - mean[c];
      return d * d;
    });
    if (!pass.statistics.empty()) {
      const float step = momentum_ * pass.statistics_share;
      const float unbiased = rows > 1 ? static_cast<float>(rows) / static_cast<float>(rows - 1) : 1.0F;
      const std::span<float> to_mean = running_mean_.in(pass.statistics);
      const std::span<float> to_variance = running_variance_.in(pass.statistics);
      for (std::size_t c = 0; c < channels_; ++c) {
        to_mean[c] = step * (mean[c] - running_mean_.values()[c]);
        to_variance[c] = step * (inverse[c] * unbiased - running_variance_.values()[c]);
      }
    }
  } else {
    std::ranges::copy(running_mean_.values(), mean);
    std::ranges::copy(running_variance_.values(), inverse);
  }
  for (std::size_t c = 0; c < channels_; ++c) inverse[c] = 1.0F / std::sqrt(inverse[c] + epsilon_);
  const float* __restrict scale = scale_.values().data();
  const float* __restrict shift = shift_.values().data();
  const bool cut = then_ == Then::relu;
  for (std::size_t row = 0; row < rows; ++row) {
    const float* __restrict from = x + row * channels_;
    float* __restrict to = output.data() + row * channels_;
    for (std::size_t c = 0; c < channels_; ++c) {
      const float value = (from[c] - mean[c]) * inverse[c] * scale[c] + shift[c];
      to[c] = cut && value < 0.0F ? 0.0F : value;
    }
  }
}

void BatchNorm::backward(const Pass&, std::span<const float> input, std::span<const float> output,
                         std::span<float> output_gradient, std::span<float> input_gradient,
                         std::span<float> gradients, std::span<float> scratch) const {
  const std::size_t rows = output.size() / channels_;
  if (then_ == Then::relu) relu_backward(output, output_gradient, output_gradient);
  const float* __restrict x = input.data();
  const float* __restrict g = output_gradient.data();
  const float* __restrict mean = scratch.data();
  const float* __restrict inverse = mean + channels_;
  float* __restrict along = scratch.data() + 2 * channels_;
  float* __restrict sum = scratch.data() + 3 * channels_;
  float* block = scratch.data() + 4 * channels_;
  channel_sums(rows, channels_, block, sum, 1,
               [&](std::size_t row, std::size_t c) { return g[row * channels_ + c]; });
  channel_sums(rows, channels_, block, along, 1, [&](std::size_t row, std::size_t c) {
    return g[row * channels_ + c] * ((x[row * channels_ + c] - mean[c]) * inverse[c]);
  });
  std::ranges::copy(std::span<const float>(sum, channels_), shift_.in(gradients).begin());
  std::ranges::copy(std::span<const float>(along, channels_), scale_.in(gradients).begin());
  if (input_gradient.empty()) return;
  const float* __restrict scale = scale_.values().data();
  const float share = 1.0F / static_cast<float>(rows);
  for (std::size_t c = 0; c < channels_; ++c) {
    sum[c] *= share;
    along[c] *= share;
  }
  for (std::size_t row = 0; row < rows; ++row) {
    const float* __restrict from = x + row * channels_;
    const float* __restrict slope = g + row * channels_;
    float* __restrict to = input_gradient.data() + row * channels_;
    for (std::size_t c = 0; c < channels_; ++c) {
      to[c] = inverse[c] * scale[c] * (slope[c] - sum[c] - (from[c] - mean[c]) * inverse[c] * along[c]);
    }
  }
}

}  // namespace lockstep
