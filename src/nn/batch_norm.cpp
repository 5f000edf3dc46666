#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/batch_norm.hpp>

#include "vectors.hpp"

namespace lockstep {
namespace {

constexpr std::size_t kBlock = 64;      // rows that are summed in float before double takes the sums in
constexpr std::size_t kTogether = 256;  // channels whose sums lie on the stack
constexpr auto kLanes = static_cast<std::size_t>(kVectorLanes);

/// Calls work(V{}, c) for channels [begin, end): V is a Vector for 16 of them, or a float for one.
template <class Work>
void for_channels(std::size_t begin, std::size_t end, Work&& work) {
  std::size_t c = begin;
  for (; c + kLanes <= end; c += kLanes) work(Vector{}, c);
  for (; c < end; ++c) work(float{}, c);
}

/// The same for blocks of rows: work(V{}, first row, rows, c). Each block's values come from memory once.
template <class Work>
void for_blocks(std::size_t rows, std::size_t channels, Work&& work) {
  for (std::size_t row = 0; row < rows; row += kBlock) {
    for_channels(0, channels, [&](auto v, std::size_t c) { work(v, row, std::min(kBlock, rows - row), c); });
  }
}

/// Sum of term(0), ..., term(count - 1): four at a time.
template <class V, class Term>
V sum_of(std::size_t count, Term&& term) {
  V a{}, b{}, c{}, d{};
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    a += term(i);
    b += term(i + 1);
    c += term(i + 2);
    d += term(i + 3);
  }
  for (; i < count; ++i) a += term(i);
  return (a + b) + (c + d);
}

template <class V, class Function>
void for_lanes(const V& value, Function&& function) {
  float lanes[sizeof(V) / sizeof(float)];
  store(value, lanes);
  for (std::size_t i = 0; i < sizeof(V) / sizeof(float); ++i) function(i, static_cast<double>(lanes[i]));
}

/// Means and variances of the channels: those of blocks, joined (Chan and others 1979), so that values are
/// read once and a large mean costs no precision.
void moments(std::size_t rows, std::size_t channels, const float* x, float* mean, float* variance) {
  for (std::size_t begin = 0; begin < channels; begin += kTogether) {
    const std::size_t end = std::min(channels, begin + kTogether);
    double means[kTogether] = {};
    double squares[kTogether] = {};  // sums of squared distances from the mean
    for (std::size_t row = 0; row < rows; row += kBlock) {
      const std::size_t count = std::min(kBlock, rows - row);
      const double share = static_cast<double>(count) / static_cast<double>(row + count);
      for_channels(begin, end, [&](auto v, std::size_t c) {
        using V = decltype(v);
        const float* from = x + row * channels + c;
        const auto value = [&](std::size_t i) { return load<V>(from + i * channels); };
        const V block_mean = sum_of<V>(count, value) * (1.0F / static_cast<float>(count));
        const V block_squares = sum_of<V>(count, [&](std::size_t i) {
          const V distance = value(i) - block_mean;
          return distance * distance;
        });
        const std::size_t at = c - begin;
        for_lanes(block_squares, [&](std::size_t lane, double add) { squares[at + lane] += add; });
        for_lanes(block_mean, [&](std::size_t lane, double its) {
          const double apart = its - means[at + lane];
          means[at + lane] += apart * share;
          squares[at + lane] += apart * apart * share * static_cast<double>(row);
        });
      });
    }
    for (std::size_t c = begin; c < end; ++c) {
      mean[c] = static_cast<float>(means[c - begin]);
      variance[c] = static_cast<float>(squares[c - begin] / static_cast<double>(rows));
    }
  }
}

/// What makes an output of an input: ((x - mean) * inverse) * scale + shift, for one V of channels.
template <class V>
struct Normalized {
  V mean, inverse, scale, shift;

  /// Of channels from c on; `kept` holds means and inverses.
  static Normalized of(const float* kept, std::size_t channels, const float* scale, const float* shift,
                       std::size_t c) {
    return {load<V>(kept + c), load<V>(kept + channels + c), load<V>(scale + c), load<V>(shift + c)};
  }

  V unscaled(const V& x) const { return (x - mean) * inverse; }
  V output(const V& x) const { return unscaled(x) * scale + shift; }

  V cut_output(bool cut, const V& x) const {
    const V value = output(x);
    if (!cut) return value;
    return value < 0.0F ? V{} : value;
  }

  /// The slope before the ReLU, if there is one.
  V slope(bool cut, const V& x, const V& output_slope) const {
    if (!cut) return output_slope;
    return output(x) <= 0.0F ? V{} : output_slope;
  }
};

}  // namespace

BatchNorm::BatchNorm(Then then, float momentum, float epsilon)
    : then_(then), momentum_(momentum), epsilon_(epsilon) {
  if (!(momentum >= 0 && momentum <= 1) || !(epsilon > 0)) {
    throw UsageError(fmt::format(
        "a batch norm has a momentum from 0 to 1 and an epsilon above 0 (got {}, {})", momentum, epsilon));
  }
}

std::string BatchNorm::describe() const {
  std::string text = fmt::format("batch norm {}{}", channels_, then_ == Then::relu ? ", relu" : "");
  if (momentum_ != kMomentum) text += fmt::format(", momentum {}", momentum_);
  if (epsilon_ != kEpsilon) text += fmt::format(", epsilon {}", epsilon_);
  return text;
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

// For each channel: mean, 1 / deviation, and two sums of backward.
std::size_t BatchNorm::scratch_size(std::int64_t) const {
  return 4 * channels_;
}

void BatchNorm::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                        std::span<float> scratch) const {
  const std::size_t rows = output.size() / channels_;
  const float* x = input.data();
  float* mean = scratch.data();
  float* inverse = mean + channels_;
  if (pass.training) {
    if (rows < 2) {
      throw UsageError(
          "a batch norm has one value for each channel, whose norm is always 0; give micro-batches of "
          "more samples");
    }
    moments(rows, channels_, x, mean, inverse);
    if (!pass.statistics.empty()) {
      const float step = momentum_ * pass.statistics_share;
      const float unbiased = static_cast<float>(rows) / static_cast<float>(rows - 1);
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
  const float* scale = scale_.values().data();
  const float* shift = shift_.values().data();
  const bool cut = then_ == Then::relu;
  for_blocks(rows, channels_, [&](auto v, std::size_t row, std::size_t count, std::size_t c) {
    using V = decltype(v);
    const auto norm = Normalized<V>::of(scratch.data(), channels_, scale, shift, c);
    for (std::size_t i = row * channels_ + c; count > 0; --count, i += channels_) {
      store<V>(norm.cut_output(cut, load<V>(x + i)), output.data() + i);
    }
  });
}

void BatchNorm::backward(const Pass&, std::span<const float> input, std::span<const float> output,
                         std::span<float> output_gradient, std::span<float> input_gradient,
                         std::span<float> gradients, std::span<float> scratch) const {
  const std::size_t rows = output.size() / channels_;
  const bool cut = then_ == Then::relu;
  const float* scale = scale_.values().data();
  const float* shift = shift_.values().data();
  const float* x = input.data();
  const float* g = output_gradient.data();
  float* along = scratch.data() + 2 * channels_;
  float* sum = scratch.data() + 3 * channels_;
  for (std::size_t begin = 0; begin < channels_; begin += kTogether) {
    const std::size_t end = std::min(channels_, begin + kTogether);
    double sums[kTogether] = {};
    double alongs[kTogether] = {};
    for (std::size_t row = 0; row < rows; row += kBlock) {
      const std::size_t count = std::min(kBlock, rows - row);
      for_channels(begin, end, [&](auto v, std::size_t c) {
        using V = decltype(v);
        const auto norm = Normalized<V>::of(scratch.data(), channels_, scale, shift, c);
        const std::size_t first = row * channels_ + c;
        V block_along{};
        const V block_sum = sum_of<V>(count, [&](std::size_t i) {
          const V value = load<V>(x + first + i * channels_);
          const V slope = norm.slope(cut, value, load<V>(g + first + i * channels_));
          block_along += slope * norm.unscaled(value);
          return slope;
        });
        for_lanes(block_sum, [&](std::size_t lane, double add) { sums[c - begin + lane] += add; });
        for_lanes(block_along, [&](std::size_t lane, double add) { alongs[c - begin + lane] += add; });
      });
    }
    for (std::size_t c = begin; c < end; ++c) {
      sum[c] = static_cast<float>(sums[c - begin]);
      along[c] = static_cast<float>(alongs[c - begin]);
    }
  }
  std::ranges::copy(std::span<const float>(sum, channels_), shift_.in(gradients).begin());
  std::ranges::copy(std::span<const float>(along, channels_), scale_.in(gradients).begin());
  if (input_gradient.empty()) return;
  const float share = 1.0F / static_cast<float>(rows);
  for_blocks(rows, channels_, [&](auto v, std::size_t row, std::size_t count, std::size_t c) {
    using V = decltype(v);
    const auto norm = Normalized<V>::of(scratch.data(), channels_, scale, shift, c);
    const V factor = norm.inverse * norm.scale;
    const V mean_slope = load<V>(sum + c) * share;
    const V mean_along = load<V>(along + c) * share;
    for (std::size_t i = row * channels_ + c; count > 0; --count, i += channels_) {
      const V value = load<V>(x + i);
      const V slope = norm.slope(cut, value, load<V>(g + i));
      store<V>(factor * (slope - mean_slope - norm.unscaled(value) * mean_along), input_gradient.data() + i);
    }
  });
}

}  // namespace lockstep
