#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/avg_pool2d.hpp>
#include <lockstep/nn/conv2d.hpp>
#include <lockstep/nn/conv3d.hpp>
#include <lockstep/nn/conv_transpose2d.hpp>
#include <lockstep/nn/global_avg_pool.hpp>
#include <lockstep/nn/gradient_check.hpp>
#include <lockstep/nn/max_pool2d.hpp>

#include "support.hpp"

namespace lockstep {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

ConvolutionShape shape_of(std::array<std::int64_t, 3> input, std::int64_t in, std::int64_t out,
                          std::int64_t kernel, std::int64_t stride, std::int64_t padding,
                          std::int64_t groups) {
  ConvolutionShape shape{.input = input, .input_channels = in, .output_channels = out, .groups = groups};
  for (std::size_t d = input[0] == 1 ? 1 : 0; d < 3; ++d) {
    shape.kernel[d] = kernel;
    shape.stride[d] = stride;
    shape.padding[d] = padding;
  }
  return shape;
}

std::vector<ConvolutionShape> ragged_shapes() {
  return {shape_of({1, 5, 5}, 1, 1, 1, 1, 0, 1),   shape_of({1, 7, 6}, 1, 3, 5, 1, 0, 1),
          shape_of({1, 9, 8}, 3, 17, 3, 1, 1, 1),  shape_of({1, 12, 12}, 32, 64, 5, 1, 0, 1),
          shape_of({1, 8, 9}, 16, 32, 3, 2, 1, 1), shape_of({1, 8, 8}, 16, 32, 1, 2, 0, 1),
          shape_of({1, 6, 7}, 6, 4, 3, 1, 2, 2),   shape_of({1, 6, 6}, 32, 32, 3, 1, 1, 2),
          shape_of({1, 6, 6}, 8, 8, 3, 1, 1, 8),   shape_of({4, 5, 6}, 1, 3, 3, 1, 1, 1),
          shape_of({5, 5, 5}, 16, 16, 3, 2, 1, 1), shape_of({3, 4, 5}, 4, 6, 2, 1, 0, 2),
          shape_of({1, 6, 7}, 33, 40, 1, 1, 0, 1), shape_of({2, 3, 4}, 32, 32, 1, 1, 0, 1),
          shape_of({1, 6, 7}, 32, 34, 1, 1, 0, 2), shape_of({1, 6, 7}, 32, 33, 1, 1, 1, 1)};
}

/// Every pixel and weight in turn, in double: what a convolution is.
struct Reference {
  std::vector<double> output, input_gradient, weight_gradient, bias_gradient;

  Reference(const ConvolutionShape& s, std::int64_t samples, std::span<const float> input,
            std::span<const float> weight, std::span<const float> bias,
            std::span<const float> output_gradient)
      : output(output_gradient.size()),
        input_gradient(input.size()),
        weight_gradient(weight.size()),
        bias_gradient(bias.size()) {
    const std::int64_t in = s.input_channels / s.groups;
    const std::int64_t out = s.output_channels / s.groups;
    std::size_t at = 0;
    for (std::int64_t n = 0; n < samples; ++n) {
      for (std::int64_t z = 0; z < s.output(0); ++z) {
        for (std::int64_t y = 0; y < s.output(1); ++y) {
          for (std::int64_t x = 0; x < s.output(2); ++x) {
            for (std::int64_t o = 0; o < s.output_channels; ++o, ++at) {
              double sum = static_cast<double>(bias[static_cast<std::size_t>(o)]);
              const auto g = static_cast<double>(output_gradient[at]);
              bias_gradient[static_cast<std::size_t>(o)] += g;
              std::size_t w = static_cast<std::size_t>(o);
              for (std::int64_t kz = 0; kz < s.kernel[0]; ++kz) {
                for (std::int64_t ky = 0; ky < s.kernel[1]; ++ky) {
                  for (std::int64_t kx = 0; kx < s.kernel[2]; ++kx) {
                    for (std::int64_t c = 0; c < in; ++c, w += static_cast<std::size_t>(s.output_channels)) {
                      const std::int64_t pz = z * s.stride[0] - s.padding[0] + kz;
                      const std::int64_t py = y * s.stride[1] - s.padding[1] + ky;
                      const std::int64_t px = x * s.stride[2] - s.padding[2] + kx;
                      if (pz < 0 || py < 0 || px < 0 || pz >= s.input[0] || py >= s.input[1] ||
                          px >= s.input[2]) {
                        continue;
                      }
                      const auto pixel = static_cast<std::size_t>(
                          (((n * s.input[0] + pz) * s.input[1] + py) * s.input[2] + px) * s.input_channels +
                          o / out * in + c);
                      sum += static_cast<double>(input[pixel]) * static_cast<double>(weight[w]);
                      input_gradient[pixel] += g * static_cast<double>(weight[w]);
                      weight_gradient[w] += g * static_cast<double>(input[pixel]);
                    }
                  }
                }
              }
              output[at] = sum;
            }
          }
        }
      }
    }
  }
};

void check_close(const char* what, std::span<const float> ours, std::span<const double> expected) {
  CAPTURE(what);
  double largest = 1, worst = 0;
  for (const double x : expected) largest = std::max(largest, std::abs(x));
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const double error = std::abs(static_cast<double>(ours[i]) - expected[i]);
    if (!(error <= worst)) worst = error;
  }
  CHECK(worst < 2e-6 * largest * 10);
}

struct Run {
  std::vector<float> output, input_gradient, weight_gradient, bias_gradient;
};

struct Case {
  ConvolutionShape shape;
  std::int64_t samples;
  std::vector<float> input = test::normal_values(
      static_cast<std::size_t>(samples * shape.input_positions() * shape.input_channels), 1);
  std::vector<float> weight = test::normal_values(static_cast<std::size_t>(shape.weights()), 2);
  std::vector<float> bias = test::normal_values(static_cast<std::size_t>(shape.output_channels), 3);
  std::vector<float> gradient = test::normal_values(
      static_cast<std::size_t>(samples * shape.output_positions() * shape.output_channels), 4);

  Run run(Convolution& convolution, std::size_t shift = 0) const {
    const test::Shifted in(input, shift), w(weight, shift), b(bias, shift), g(gradient, shift);
    const test::Shifted out(gradient, shift), in_gradient(input, shift), w_gradient(weight, shift),
        b_gradient(bias, shift);
    convolution.forward(samples, in.values(), w.values(), b.values(), out.values());
    convolution.input_gradient(samples, g.values(), w.values(), in_gradient.values());
    convolution.weight_gradient(samples, in.values(), g.values(), w_gradient.values(), b_gradient.values());
    const auto copy = [](const test::Shifted& from) {
      return std::vector<float>(from.values().begin(), from.values().end());
    };
    return {copy(out), copy(in_gradient), copy(w_gradient), copy(b_gradient)};
  }
};

TEST_CASE("convolutions are what they say for ragged shapes and every library") {
  for (const auto& kernels : test::all_kernels_and_precisions()) {
    for (const ConvolutionShape& shape : ragged_shapes()) {
      const Case c{shape, 3};
      CAPTURE(kernels->name());
      CAPTURE(static_cast<int>(kernels->precision()));
      CAPTURE(to_string({shape.input[0], shape.input[1], shape.input[2], shape.input_channels}));
      CAPTURE(to_string(
          {shape.kernel[2], shape.stride[2], shape.padding[2], shape.groups, shape.output_channels}));
      const auto convolution = kernels->convolution(shape, 3);
      const Run run = c.run(*convolution);
      const auto input = test::as_operands(*kernels, c.input);
      const auto weight = test::as_operands(*kernels, c.weight);
      const auto gradient = test::as_operands(*kernels, c.gradient);
      const Reference expected(shape, 3, input, weight, c.bias, gradient);
      check_close("output", run.output, expected.output);
      check_close("input gradient", run.input_gradient, expected.input_gradient);
      check_close("weight gradient", run.weight_gradient, expected.weight_gradient);
      check_close("bias gradient", run.bias_gradient,
                  Reference(shape, 3, c.input, c.weight, c.bias, c.gradient).bias_gradient);
      // Without a bias, too.
      std::vector<float> output(c.gradient.size()), weight_gradient(c.weight.size());
      convolution->forward(3, c.input, c.weight, {}, output);
      convolution->weight_gradient(3, c.input, c.gradient, weight_gradient, {});
      const std::vector<float> zeros(c.bias.size());
      check_close("without bias", output, Reference(shape, 3, input, weight, zeros, gradient).output);
      check_close("weight gradient alone", weight_gradient, expected.weight_gradient);
    }
  }
}

TEST_CASE("convolutions have the same bits twice, from another object, and at other addresses") {
  for (const auto& kernels : test::all_kernels_and_precisions()) {
    for (const ConvolutionShape& shape : ragged_shapes()) {
      CAPTURE(kernels->name());
      const Case c{shape, 2};
      const auto one = kernels->convolution(shape, 2);
      const Run first = c.run(*one);
      const auto other = kernels->convolution(shape, 5);
      const Case between{shape, 5};
      between.run(*other);
      for (const std::size_t shift : {0, 1, 4, 11}) {
        for (Convolution* convolution : {one.get(), other.get()}) {
          const Run again = c.run(*convolution, shift);
          CHECK(test::same_bits(first.output, again.output));
          CHECK(test::same_bits(first.input_gradient, again.input_gradient));
          CHECK(test::same_bits(first.weight_gradient, again.weight_gradient));
          CHECK(test::same_bits(first.bias_gradient, again.bias_gradient));
        }
      }
    }
  }
}

template <class L, class... Arguments>
void check_layer(const Shape& input, double tolerance, const Arguments&... arguments) {
  for (const auto& kernels : test::all_kernels()) {
    for (const std::int64_t samples : {1, 4}) {
      CAPTURE(kernels->name());
      CAPTURE(to_string(input));
      auto layer = std::make_unique<L>(arguments...);
      CAPTURE(layer->kind());
      const GradientReport report = check_gradients(std::move(layer), input, *kernels, {.samples = samples});
      INFO(report.where);
      CHECK(report.worst < tolerance);
      CHECK(report.checked > report.skipped);
    }
  }
}

TEST_CASE("the gradients of convolution and pooling layers agree with differences") {
  check_layer<Conv2d>({6, 5}, 3e-3, 3, 3);
  check_layer<Conv2d>({5, 6, 4}, 3e-3, 6, 3, ConvolutionOptions{.stride = 2, .padding = 1, .groups = 2});
  check_layer<Conv2d>({4, 4, 3}, 3e-3, 5, 1, ConvolutionOptions{.bias = false});
  check_layer<Conv3d>({3, 4, 3}, 3e-3, 2, 2);
  check_layer<Conv3d>({3, 4, 3, 2}, 3e-3, 3, 3, ConvolutionOptions{.stride = 2, .padding = 1});
  check_layer<ConvTranspose2d>({3, 4, 3}, 3e-3, 2, 2, 2);
  check_layer<ConvTranspose2d>({3, 2, 2}, 3e-3, 4, 3, 2);
  check_layer<ConvTranspose2d>({2, 3, 1}, 3e-3, 1, 3, 1);
  check_layer<AvgPool2d>({5, 7, 3}, 3e-3, 2);
  check_layer<AvgPool2d>({5, 7, 3}, 3e-3, 3, 1);
  check_layer<GlobalAvgPool>({4, 3, 5}, 3e-3);
  check_layer<MaxPool2d>({6, 6, 3}, 3e-3, 2);
  check_layer<MaxPool2d>({5, 7, 3}, 3e-3, 3, 2);
  check_layer<MaxPool2d>({5, 5}, 3e-3, 2, 1);
}

/// The outputs of a layer for samples, and its first two parameters.
struct Applied {
  Shape shape;
  std::vector<float> output;
  std::vector<std::vector<float>> parameters;

  Applied(std::unique_ptr<Layer> layer, const Shape& input, std::int64_t samples, std::span<const float> in,
          const Kernels& kernels) {
    State state;
    shape = layer->declare(state, "l", input);
    PlainAllocator allocator;
    state.freeze(allocator);
    std::uint32_t stream = 20;
    for (const Tensor& tensor : state.parameter_tensors()) {
      parameters.push_back(test::normal_values(tensor.size(), stream++));
      std::ranges::copy(parameters.back(), tensor.values().begin());
    }
    const auto plan = layer->plan(kernels, samples);
    output.assign(static_cast<std::size_t>(samples * element_count(shape)), kNan);
    std::vector<float> scratch(layer->scratch_size(samples));
    layer->forward({.kernels = kernels, .samples = samples, .training = false, .plan = plan.get()}, in,
                   output, scratch);
  }
};

TEST_CASE(
    "a transposed convolution adds each pixel's weighted kernel to its window, overlapping or with gaps") {
  constexpr std::int64_t kSamples = 2;
  for (const auto& kernels : test::all_kernels()) {
    for (const auto& sizes : {std::array<std::int64_t, 6>{3, 4, 3, 2, 2, 2},
                              {3, 2, 2, 4, 3, 2},
                              {4, 5, 1, 3, 3, 1},
                              {2, 3, 5, 1, 2, 3},
                              {3, 3, 33, 40, 1, 1},
                              {1, 1, 2, 2, 4, 4}}) {
      const std::int64_t height = sizes[0], width = sizes[1], in = sizes[2], out = sizes[3],
                         kernel = sizes[4];
      const std::int64_t stride = sizes[5];
      const Shape shape(sizes.begin(), sizes.end());
      CAPTURE(kernels->name());
      CAPTURE(to_string(shape));
      const auto input = test::normal_values(static_cast<std::size_t>(kSamples * height * width * in), 5);
      const Applied applied(std::make_unique<ConvTranspose2d>(out, kernel, stride), {height, width, in},
                            kSamples, input, *kernels);
      const std::int64_t rows = (height - 1) * stride + kernel;
      const std::int64_t columns = (width - 1) * stride + kernel;
      REQUIRE(applied.shape == Shape{rows, columns, out});
      std::vector<double> expected(applied.output.size());
      for (std::size_t i = 0; i < expected.size(); ++i) {
        expected[i] = static_cast<double>(applied.parameters[1][i % static_cast<std::size_t>(out)]);
      }
      std::size_t at = 0;
      for (std::int64_t pixel = 0; pixel < kSamples * height * width; ++pixel) {
        const std::int64_t sample = pixel / (height * width);
        const std::int64_t y = pixel / width % height;
        const std::int64_t x = pixel % width;
        for (std::int64_t c = 0; c < in; ++c, ++at) {
          for (std::int64_t k = 0; k < kernel * kernel * out; ++k) {
            const std::int64_t row = y * stride + k / out / kernel;
            const std::int64_t column = x * stride + k / out % kernel;
            expected[static_cast<std::size_t>(((sample * rows + row) * columns + column) * out + k % out)] +=
                static_cast<double>(input[at]) *
                static_cast<double>(applied.parameters[0][static_cast<std::size_t>(k * in + c)]);
          }
        }
      }
      check_close("output", applied.output, expected);
    }
  }
}

TEST_CASE("pools have the largest and the mean values of their windows") {
  const auto kernels = make_kernels();
  constexpr std::int64_t kSamples = 3;
  for (const auto& sizes : {std::array<std::int64_t, 5>{6, 6, 3, 2, 2},
                            {5, 7, 2, 3, 2},
                            {5, 5, 1, 2, 1},
                            {4, 9, 17, 2, 3},
                            {3, 3, 4, 3, 3}}) {
    const std::int64_t height = sizes[0], width = sizes[1], channels = sizes[2], size = sizes[3];
    const std::int64_t stride = sizes[4];
    const Shape shape{height, width, channels};
    CAPTURE(to_string(shape));
    CAPTURE(size);
    const auto input = test::normal_values(static_cast<std::size_t>(kSamples * element_count(shape)), 6);
    const Applied largest(std::make_unique<MaxPool2d>(size, stride), shape, kSamples, input, *kernels);
    const Applied mean(std::make_unique<AvgPool2d>(size, stride), shape, kSamples, input, *kernels);
    const Applied all(std::make_unique<GlobalAvgPool>(), shape, kSamples, input, *kernels);
    const std::int64_t rows = (height - size) / stride + 1;
    const std::int64_t columns = (width - size) / stride + 1;
    REQUIRE(largest.shape == Shape{rows, columns, channels});
    REQUIRE(mean.shape == largest.shape);
    REQUIRE(all.shape == Shape{channels});
    const auto pixel = [&](std::int64_t sample, std::int64_t y, std::int64_t x, std::int64_t c) {
      return static_cast<double>(
          input[static_cast<std::size_t>(((sample * height + y) * width + x) * channels + c)]);
    };
    std::vector<double> most, means, totals;
    for (std::int64_t sample = 0; sample < kSamples; ++sample) {
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t column = 0; column < columns; ++column) {
          for (std::int64_t c = 0; c < channels; ++c) {
            double sum = 0, top = -1e9;
            for (std::int64_t k = 0; k < size * size; ++k) {
              const double value = pixel(sample, row * stride + k / size, column * stride + k % size, c);
              sum += value;
              top = std::max(top, value);
            }
            most.push_back(top);
            means.push_back(sum / static_cast<double>(size * size));
          }
        }
      }
      for (std::int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (std::int64_t k = 0; k < height * width; ++k) sum += pixel(sample, k / width, k % width, c);
        totals.push_back(sum / static_cast<double>(height * width));
      }
    }
    check_close("largest", largest.output, most);
    check_close("mean", mean.output, means);
    check_close("mean of all", all.output, totals);
  }
}

TEST_CASE("a maximum pool sends the gradient to the first of equal pixels, and keeps NaN") {
  State state;
  MaxPool2d layer{2};
  CHECK(layer.declare(state, "p", {2, 4, 1}) == Shape{1, 2, 1});
  const auto kernels = make_kernels();
  const Pass pass{.kernels = *kernels, .samples = 1};
  std::vector<float> in{1, 3, kNan, 0, 3, 2, 0, 5}, out(2), scratch(layer.scratch_size(1));
  layer.forward(pass, in, out, scratch);
  CHECK(out[0] == 3.0F);
  CHECK(std::isnan(out[1]));
  std::vector<float> gradient{7, 8}, in_gradient(8, 1.0F);
  layer.backward(pass, in, out, gradient, in_gradient, {}, scratch);
  CHECK(in_gradient == std::vector<float>{0, 7, 8, 0, 0, 0, 0, 0});
  for (std::size_t at = 0; at < 8; ++at) {
    std::vector<float> one(8);
    one[at] = kNan;
    layer.forward(pass, one, out, scratch);
    CHECK(std::isnan(out[at % 4 / 2]));
  }
}

TEST_CASE("shapes that cannot be are refused") {
  State state;
  CHECK_THROWS_AS((Conv2d{0, 3}), UsageError);
  CHECK_THROWS_AS((Conv2d{4, 3, {.groups = 3}}), UsageError);
  CHECK_THROWS_AS((Conv2d{4, 3, {.stride = 0}}), UsageError);
  CHECK_THROWS_AS((Conv2d{4, 3}.declare(state, "a", {2, 5, 1})), UsageError);
  CHECK_THROWS_AS((Conv2d{4, 3, {.groups = 2}}.declare(state, "b", {5, 5, 3})), UsageError);
  CHECK_THROWS_AS((Conv2d{4, 3}.declare(state, "c", {5})), UsageError);
  CHECK_THROWS_AS((Conv3d{4, 3}.declare(state, "d", {5, 5})), UsageError);
  CHECK_THROWS_AS((ConvTranspose2d{4, 3}.declare(state, "e", {5, 5})), UsageError);
  CHECK_THROWS_AS(MaxPool2d{0}, UsageError);
  CHECK_THROWS_AS(MaxPool2d{3}.declare(state, "f", {2, 5, 1}), UsageError);
  CHECK_THROWS_AS(AvgPool2d{2}.declare(state, "g", {5}), UsageError);
}

}  // namespace
}  // namespace lockstep
