#pragma once

#include <algorithm>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// The mean of each channel over all positions: [..., channels] becomes [channels].
class GlobalAvgPool final : public Layer {
 public:
  std::string_view kind() const noexcept override { return "global_avg_pool"; }
  std::string describe() const override { return "global_avg_pool"; }

  Shape declare(State&, const std::string&, const Shape& input) override {
    if (input.size() < 2) {
      throw UsageError("a global_avg_pool layer takes samples [..., channels] (got " + to_string(input) +
                       ")");
    }
    channels_ = static_cast<std::size_t>(input.back());
    positions_ = static_cast<std::size_t>(element_count(input)) / channels_;
    return {input.back()};
  }

  void forward(const Pass&, std::span<const float> input, std::span<float> output,
               std::span<float>) const override {
    const float share = 1.0F / static_cast<float>(positions_);
    std::ranges::fill(output, 0.0F);
    const float* from = input.data();
    for (std::size_t at = 0; at < output.size(); at += channels_) {
      float* to = output.data() + at;
      for (std::size_t i = 0; i < positions_; ++i, from += channels_) {
        for (std::size_t c = 0; c < channels_; ++c) to[c] += from[c];
      }
      for (std::size_t c = 0; c < channels_; ++c) to[c] *= share;
    }
  }

  void backward(const Pass&, std::span<const float>, std::span<const float>, std::span<float> output_gradient,
                std::span<float> input_gradient, std::span<float>, std::span<float>) const override {
    if (input_gradient.empty()) return;
    const float share = 1.0F / static_cast<float>(positions_);
    float* to = input_gradient.data();
    for (std::size_t at = 0; at < output_gradient.size(); at += channels_) {
      const float* from = output_gradient.data() + at;
      for (std::size_t i = 0; i < positions_; ++i, to += channels_) {
        for (std::size_t c = 0; c < channels_; ++c) to[c] = from[c] * share;
      }
    }
  }

 private:
  std::size_t channels_ = 1;
  std::size_t positions_ = 1;
};

}  // namespace lockstep
