#include "convolution_by_products.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include <lockstep/nn/elementwise.hpp>

namespace lockstep {
namespace {

/// A kernel of one pixel: one product of all pixels with the weights.
class PointwiseConvolution final : public Convolution {
 public:
  PointwiseConvolution(const Kernels& kernels, const ConvolutionShape& shape)
      : kernels_(kernels),
        in_(shape.input_channels),
        out_(shape.output_channels),
        pixels_(shape.input_positions()) {}

  void forward(std::int64_t samples, std::span<const float> input, std::span<const float> weight,
               std::span<const float> bias, std::span<float> output) override {
    kernels_.gemm(Transpose::no, Transpose::no, samples * pixels_, out_, in_, input.data(), in_,
                  weight.data(), out_, false, output.data(), out_);
    if (!bias.empty()) add_bias(output, bias);
  }

  void input_gradient(std::int64_t samples, std::span<const float> output_gradient,
                      std::span<const float> weight, std::span<float> input_gradient) override {
    kernels_.gemm(Transpose::no, Transpose::yes, samples * pixels_, in_, out_, output_gradient.data(), out_,
                  weight.data(), out_, false, input_gradient.data(), in_);
  }

  void weight_gradient(std::int64_t samples, std::span<const float> input,
                       std::span<const float> output_gradient, std::span<float> weight_gradient,
                       std::span<float> bias_gradient) override {
    kernels_.gemm(Transpose::yes, Transpose::no, in_, out_, samples * pixels_, input.data(), in_,
                  output_gradient.data(), out_, false, weight_gradient.data(), out_);
    if (!bias_gradient.empty()) column_sums(output_gradient, bias_gradient);
  }

 private:
  const Kernels& kernels_;
  std::int64_t in_, out_, pixels_;
};

/// Gathers the windows of one sample into the rows of a matrix [output positions, window x channels] and
/// multiplies that with the weights.
class ConvolutionByProducts final : public Convolution {
 public:
  ConvolutionByProducts(const Kernels& kernels, const ConvolutionShape& shape)
      : kernels_(kernels),
        shape_(shape),
        in_(shape.input_channels / shape.groups),
        out_(shape.output_channels / shape.groups),
        columns_(shape.window() * in_),
        windows_(static_cast<std::size_t>(shape.output_positions() * columns_)) {}

  void forward(std::int64_t samples, std::span<const float> input, std::span<const float> weight,
               std::span<const float> bias, std::span<float> output) override {
    for (std::int64_t sample = 0; sample < samples; ++sample) {
      for (std::int64_t group = 0; group < shape_.groups; ++group) {
        gather(input.data() + sample * input_size() + group * in_);
        kernels_.gemm(Transpose::no, Transpose::no, shape_.output_positions(), out_, columns_,
                      windows_.data(), columns_, weight.data() + group * out_, shape_.output_channels, false,
                      output.data() + sample * output_size() + group * out_, shape_.output_channels);
      }
    }
    if (!bias.empty()) add_bias(output, bias);
  }

  void input_gradient(std::int64_t samples, std::span<const float> output_gradient,
                      std::span<const float> weight, std::span<float> input_gradient) override {
    std::ranges::fill(input_gradient, 0.0F);
    for (std::int64_t sample = 0; sample < samples; ++sample) {
      for (std::int64_t group = 0; group < shape_.groups; ++group) {
        kernels_.gemm(Transpose::no, Transpose::yes, shape_.output_positions(), columns_, out_,
                      output_gradient.data() + sample * output_size() + group * out_, shape_.output_channels,
                      weight.data() + group * out_, shape_.output_channels, false, windows_.data(), columns_);
        scatter(input_gradient.data() + sample * input_size() + group * in_);
      }
    }
  }

  void weight_gradient(std::int64_t samples, std::span<const float> input,
                       std::span<const float> output_gradient, std::span<float> weight_gradient,
                       std::span<float> bias_gradient) override {
    for (std::int64_t sample = 0; sample < samples; ++sample) {
      for (std::int64_t group = 0; group < shape_.groups; ++group) {
        gather(input.data() + sample * input_size() + group * in_);
        kernels_.gemm(Transpose::yes, Transpose::no, columns_, out_, shape_.output_positions(),
                      windows_.data(), columns_,
                      output_gradient.data() + sample * output_size() + group * out_, shape_.output_channels,
                      sample > 0, weight_gradient.data() + group * out_, shape_.output_channels);
      }
    }
    if (!bias_gradient.empty()) column_sums(output_gradient, bias_gradient);
  }

 private:
  std::int64_t input_size() const { return shape_.input_positions() * shape_.input_channels; }
  std::int64_t output_size() const { return shape_.output_positions() * shape_.output_channels; }

  /// Calls function(offset of the pixel in the sample or -1 outside, element of windows_) for every pixel of
  /// every window.
  template <class Function>
  void for_each_pixel(Function&& function) {
    std::size_t at = 0;
    const auto inside = [&](std::size_t dimension, std::int64_t position) {
      return position >= 0 && position < shape_.input[dimension];
    };
    for (std::int64_t z = 0; z < shape_.output(0); ++z) {
      for (std::int64_t y = 0; y < shape_.output(1); ++y) {
        for (std::int64_t x = 0; x < shape_.output(2); ++x) {
          for (std::int64_t kz = 0; kz < shape_.kernel[0]; ++kz) {
            const std::int64_t pz = z * shape_.stride[0] - shape_.padding[0] + kz;
            for (std::int64_t ky = 0; ky < shape_.kernel[1]; ++ky) {
              const std::int64_t py = y * shape_.stride[1] - shape_.padding[1] + ky;
              for (std::int64_t kx = 0; kx < shape_.kernel[2]; ++kx) {
                const std::int64_t px = x * shape_.stride[2] - shape_.padding[2] + kx;
                const bool valid = inside(0, pz) && inside(1, py) && inside(2, px);
                function(
                    valid ? ((pz * shape_.input[1] + py) * shape_.input[2] + px) * shape_.input_channels : -1,
                    at);
                at += static_cast<std::size_t>(in_);
              }
            }
          }
        }
      }
    }
  }

  void gather(const float* sample) {
    for_each_pixel([&](std::int64_t pixel, std::size_t at) {
      float* to = windows_.data() + at;
      if (pixel < 0) {
        std::fill_n(to, in_, 0.0F);
      } else {
        std::copy_n(sample + pixel, in_, to);
      }
    });
  }

  void scatter(float* sample) {
    for_each_pixel([&](std::int64_t pixel, std::size_t at) {
      if (pixel < 0) return;
      const float* from = windows_.data() + at;
      float* to = sample + pixel;
      for (std::int64_t c = 0; c < in_; ++c) to[c] += from[c];
    });
  }

  const Kernels& kernels_;
  ConvolutionShape shape_;
  std::int64_t in_;  // channels of a group
  std::int64_t out_;
  std::int64_t columns_;
  std::vector<float> windows_;
};

}  // namespace

bool is_pointwise(const ConvolutionShape& shape) noexcept {
  constexpr std::array<std::int64_t, 3> kOne = {1, 1, 1}, kNone = {0, 0, 0};
  return shape.kernel == kOne && shape.stride == kOne && shape.padding == kNone && shape.groups == 1;
}

std::unique_ptr<Convolution> convolution_by_products(const Kernels& kernels, const ConvolutionShape& shape) {
  if (is_pointwise(shape)) return std::make_unique<PointwiseConvolution>(kernels, shape);
  return std::make_unique<ConvolutionByProducts>(kernels, shape);
}

}  // namespace lockstep
