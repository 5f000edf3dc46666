#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/attention.hpp>
#include <lockstep/nn/batch_norm.hpp>
#include <lockstep/nn/concatenate.hpp>
#include <lockstep/nn/conv2d.hpp>
#include <lockstep/nn/gelu.hpp>
#include <lockstep/nn/gradient_check.hpp>
#include <lockstep/nn/layer_norm.hpp>
#include <lockstep/nn/residual.hpp>
#include <lockstep/nn/tanh.hpp>

#include "support.hpp"

namespace lockstep {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST_CASE("the gradients of batch norm agree with differences for ragged shapes") {
  const auto kernels = make_kernels();
  for (const Shape& input : {Shape{1}, Shape{7}, Shape{3, 5, 2}, Shape{11, 7, 16}}) {
    for (const std::int64_t samples : {3, 8}) {
      for (const auto then : {BatchNorm::Then::nothing, BatchNorm::Then::relu}) {
        CAPTURE(to_string(input));
        CAPTURE(samples);
        // Many sums pass a kink of ReLU within a step, so the steps are small there.
        const bool kinks = then == BatchNorm::Then::relu;
        const GradientReport report =
            check_gradients(std::make_unique<BatchNorm>(then), input, *kernels,
                            {.samples = samples, .step = kinks ? 1.0 / 1024 : 1.0 / 128});
        INFO(report.where);
        CHECK(report.worst < (kinks ? 2e-2 : 6e-3));
        CHECK(report.checked > report.skipped);
      }
    }
  }
}

TEST_CASE("batch norm: statistics of the micro-batch in training, running ones in evaluation") {
  State state;
  BatchNorm layer{BatchNorm::Then::nothing, 0.5F, 1e-9F};
  layer.declare(state, "n", {2, 2});
  PlainAllocator allocator;
  state.freeze(allocator);
  layer.initialize(state, 1);
  const auto kernels = make_kernels();
  const std::vector<float> in{1, 10, 3, 10, 5, 20, 7, 40};  // channel means 4 and 20, variances 5 and 150
  std::vector<float> out(8), scratch(layer.scratch_size(2));
  std::vector<float> statistics(state.buffers().size());
  const Pass training{.kernels = *kernels, .samples = 2, .statistics = statistics, .statistics_share = 0.25F};
  layer.forward(training, in, out, scratch);
  CHECK(out[0] == doctest::Approx(-3 / std::sqrt(5.0)));
  CHECK(out[7] == doctest::Approx(20 / std::sqrt(150.0)));
  const auto& buffers = state.buffer_tensors();
  CHECK(buffers[0].in(statistics)[0] == doctest::Approx(0.5 * 0.25 * 4));
  CHECK(buffers[0].in(statistics)[1] == doctest::Approx(0.5 * 0.25 * 20));
  CHECK(buffers[1].in(statistics)[1] == doctest::Approx(0.5 * 0.25 * (200 - 1)));
  CHECK(state.buffers()[0] == 0.0F);  // a pass changes no state
  // After evaluation with means 0 and variances 1 nothing changes but by the epsilon.
  layer.forward({.kernels = *kernels, .samples = 2, .training = false}, in, out, scratch);
  for (std::size_t i = 0; i < 8; ++i) CHECK(out[i] == doctest::Approx(in[i]));
}

TEST_CASE("a batch norm of one value for each channel is refused in training, and only there") {
  State state;
  BatchNorm layer;
  layer.declare(state, "n", {3});
  PlainAllocator allocator;
  state.freeze(allocator);
  layer.initialize(state, 1);
  const auto kernels = make_kernels();
  const std::vector<float> in{1, 2, 3};
  std::vector<float> out(3), scratch(layer.scratch_size(1));
  CHECK_THROWS_AS(layer.forward({.kernels = *kernels, .samples = 1}, in, out, scratch), UsageError);
  layer.forward({.kernels = *kernels, .samples = 1, .training = false}, in, out, scratch);
  CHECK(out[2] == doctest::Approx(3));
}

TEST_CASE("norms that compute something else are described by other words, which checkpoints keep") {
  const auto described = [](auto layer) {
    State state;
    layer.declare(state, "n", {4, 7});
    return layer.describe();
  };
  CHECK(described(BatchNorm{BatchNorm::Then::relu}) == "batch norm 7, relu");
  CHECK(described(BatchNorm{BatchNorm::Then::nothing, 0.5F}) == "batch norm 7, momentum 0.5");
  CHECK(described(BatchNorm{BatchNorm::Then::nothing, 0.1F, 0.01F}) == "batch norm 7, epsilon 0.01");
  CHECK(described(LayerNorm{}) == "layer norm 7");
  CHECK(described(LayerNorm{0.25F}) == "layer norm 7, epsilon 0.25");
}

TEST_CASE("batch norm's sums over many rows are good to float's precision") {
  State state;
  BatchNorm layer;
  layer.declare(state, "n", {100000, 3});
  PlainAllocator allocator;
  state.freeze(allocator);
  layer.initialize(state, 1);
  auto in = test::normal_values(300000, 1);
  for (float& x : in) x = x * 0.1F + 100.0F;
  std::vector<float> out(in.size()), scratch(layer.scratch_size(1));
  const auto kernels = make_kernels();
  layer.forward({.kernels = *kernels, .samples = 1}, in, out, scratch);
  double mean = 0, square = 0;
  for (std::size_t i = 0; i < in.size(); i += 3) mean += static_cast<double>(in[i]) / 100000;
  for (std::size_t i = 0; i < in.size(); i += 3) {
    square += (static_cast<double>(in[i]) - mean) * (static_cast<double>(in[i]) - mean) / 100000;
  }
  CHECK(static_cast<double>(scratch[0]) == doctest::Approx(mean).epsilon(2e-7));
  CHECK(static_cast<double>(scratch[3]) == doctest::Approx(1 / std::sqrt(square + 1e-5)).epsilon(1e-5));
}

std::unique_ptr<Residual> block(bool shortcut, Residual::Then then) {
  Chain main, other;
  main.add(Conv2d{4, 3, {.padding = 1}}).add(Tanh{}).add(Conv2d{3, 3, {.padding = 1}});
  if (shortcut) other.add(Conv2d{3, 1}).add(Tanh{});
  return std::make_unique<Residual>(std::move(main), std::move(other), then);
}

TEST_CASE(
    "the gradients of residual blocks agree with differences, with and without a shortcut, nested too") {
  for (const auto& kernels : test::all_kernels()) {
    for (const bool shortcut : {false, true}) {
      for (const auto then : {Residual::Then::nothing, Residual::Then::relu}) {
        CAPTURE(kernels->name());
        CAPTURE(shortcut);
        const bool kinks = then == Residual::Then::relu;
        const GradientReport report = check_gradients(block(shortcut, then), {4, 5, 3}, *kernels,
                                                      {.step = kinks ? 1.0 / 1024 : 1.0 / 64});
        INFO(report.where);
        CHECK(report.worst < (kinks ? 1.5e-2 : 4e-3));
      }
    }
    Chain nested;
    nested.add(block(true, Residual::Then::nothing)).add(Tanh{});
    const GradientReport report =
        check_gradients(std::make_unique<Residual>(std::move(nested)), {3, 3, 3}, *kernels);
    INFO(report.where);
    CHECK(report.worst < 4e-3);
  }
}

TEST_CASE("concatenated branches lie side by side, and their gradients agree with differences") {
  State state;
  Chain lower;
  lower.add(Dense{2, DenseOptions{.each_position = true, .bias = false}});
  Concatenate layer{std::move(lower)};
  CHECK(layer.declare(state, "c", {2, 3}) == Shape{2, 5});
  PlainAllocator allocator;
  state.freeze(allocator);
  std::ranges::fill(state.parameters(), 1.0F);
  const auto kernels = make_kernels();
  const auto plan = layer.plan(*kernels, 1);
  std::vector<float> out(10), scratch(layer.scratch_size(1)), room(layer.room_size(1));
  const std::vector<float> in{1, 2, 3, 4, 5, 6};
  layer.forward({.kernels = *kernels, .samples = 1, .plan = plan.get(), .room = room}, in, out, scratch);
  CHECK(out == std::vector<float>{1, 2, 3, 6, 6, 4, 5, 6, 15, 15});
  for (const bool shortcut : {false, true}) {
    Chain main, other;
    main.add(Conv2d{4, 3, {.padding = 1}}).add(Tanh{});
    if (shortcut) other.add(Conv2d{3, 1}).add(Tanh{});
    // A level within a level, as a U-Net has them.
    if (!shortcut)
      main.add(Concatenate{[] {
        Chain below;
        below.add(Conv2d{2, 1}).add(Tanh{});
        return below;
      }()});
    const GradientReport report = check_gradients(
        std::make_unique<Concatenate>(std::move(main), std::move(other)), {4, 5, 3}, *kernels);
    INFO(report.where);
    CHECK(report.worst < 4e-3);
  }
  State other_state;
  Chain smaller;
  smaller.add(Conv2d{4, 3});
  CHECK_THROWS_AS(Concatenate{std::move(smaller)}.declare(other_state, "c", {4, 5, 3}), UsageError);
}

TEST_CASE("branches of different sizes are refused") {
  State state;
  Chain main;
  main.add(Dense{3});
  CHECK_THROWS_AS(Residual{std::move(main)}.declare(state, "r", {4}), UsageError);
}

/// Attention by its formula, in double.
std::vector<double> attention(std::int64_t samples, std::int64_t positions, std::int64_t width,
                              std::int64_t heads, const std::vector<float>& input) {
  std::vector<double> output(static_cast<std::size_t>(samples * positions * width));
  const std::int64_t head = width / heads;
  const auto at = [&](std::int64_t n, std::int64_t t, std::int64_t f) {
    return static_cast<double>(input[static_cast<std::size_t>((n * positions + t) * 3 * width + f)]);
  };
  for (std::int64_t n = 0; n < samples; ++n) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t t = 0; t < positions; ++t) {
        std::vector<double> weights;
        double sum = 0;
        for (std::int64_t s = 0; s <= t; ++s) {
          double dot = 0;
          for (std::int64_t j = 0; j < head; ++j)
            dot += at(n, t, h * head + j) * at(n, s, width + h * head + j);
          weights.push_back(std::exp(dot / std::sqrt(static_cast<double>(head))));
          sum += weights.back();
        }
        for (std::int64_t j = 0; j < head; ++j) {
          double value = 0;
          for (std::int64_t s = 0; s <= t; ++s) {
            value += weights[static_cast<std::size_t>(s)] / sum * at(n, s, 2 * width + h * head + j);
          }
          output[static_cast<std::size_t>((n * positions + t) * width + h * head + j)] = value;
        }
      }
    }
  }
  return output;
}

TEST_CASE("attention is its formula, also over several blocks of positions and of features") {
  for (const auto& kernels : test::all_kernels_and_precisions()) {
    for (const auto& [positions, width] : {std::pair<std::int64_t, std::int64_t>{1, 6},
                                           {5, 6},
                                           {128, 6},
                                           {300, 6},
                                           {9, 2},
                                           {45, 90},
                                           {3, 600}}) {
      CAPTURE(kernels->name());
      CAPTURE(static_cast<int>(kernels->precision()));
      const std::string shape = to_string(Shape{positions, width});
      CAPTURE(shape);
      State state;
      CausalAttention layer{2};
      CHECK(layer.declare(state, "a", {positions, 3 * width}) == Shape{positions, width});
      const auto in = test::normal_values(static_cast<std::size_t>(2 * positions * 3 * width), 1);
      std::vector<float> out(static_cast<std::size_t>(2 * positions * width)), scratch(layer.scratch_size(2));
      const auto plan = layer.plan(*kernels, 2);
      std::vector<float> room(layer.room_size(2), kNan);  // of any content
      layer.forward({.kernels = *kernels, .samples = 2, .plan = plan.get(), .room = room}, in, out, scratch);
      const auto expected = attention(2, positions, width, 2, test::as_operands(*kernels, in));
      double worst = 0;
      for (std::size_t i = 0; i < out.size(); ++i) {
        const double error = std::abs(static_cast<double>(out[i]) - expected[i]);
        if (!(error <= worst)) worst = error;
      }
      // In bf16 scores of rounded queries and keys; then weights are rounded, too.
      CHECK(worst < (kernels->precision() == Precision::f32 ? 1e-5 : 3e-2));
    }
  }
}

/// Output and input gradient.
std::pair<std::vector<float>, std::vector<float>> attend(const Kernels& kernels, std::int64_t positions,
                                                         std::int64_t width, std::int64_t heads) {
  State state;
  CausalAttention layer{heads};
  layer.declare(state, "a", {positions, 3 * width});
  const auto in = test::normal_values(static_cast<std::size_t>(2 * positions * 3 * width), 1);
  std::vector<float> out(static_cast<std::size_t>(2 * positions * width)), scratch(layer.scratch_size(2));
  auto slope = test::normal_values(out.size(), 2);
  std::vector<float> in_slope(in.size());
  const auto plan = layer.plan(kernels, 2);
  std::vector<float> room(layer.room_size(2), kNan);  // of any content
  const Pass pass{.kernels = kernels, .samples = 2, .plan = plan.get(), .room = room};
  for (int i = 0; i < 2; ++i) {  // what an earlier pass left behind does not matter
    layer.forward(pass, in, out, scratch);
    layer.backward(pass, in, out, slope, in_slope, {}, scratch);
  }
  return {out, in_slope};
}

TEST_CASE("attention in bf16, and its gradient, are near those in fp32") {
  const auto exact = make_kernels();
  const auto rounded = make_kernels(KernelChoice::automatic, Precision::bf16);
  for (const auto& [positions, width, heads] : {std::array<std::int64_t, 3>{1, 3, 1},
                                                {5, 8, 2},
                                                {128, 32, 1},
                                                {131, 14, 2},
                                                {300, 70, 2},
                                                {3, 600, 2}}) {
    const std::string shape = to_string(Shape{positions, width, heads});
    CAPTURE(shape);
    const auto [out, slope] = attend(*rounded, positions, width, heads);
    const auto [exact_out, exact_slope] = attend(*exact, positions, width, heads);
    const auto near = [](const std::vector<float>& a, const std::vector<float>& b) {
      double difference = 0, size = 0;
      for (std::size_t i = 0; i < a.size(); ++i) {
        difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
        size += std::pow(static_cast<double>(b[i]), 2);
      }
      return std::sqrt(difference / size);
    };
    CHECK(near(out, exact_out) < 6e-3);
    CHECK(near(slope, exact_slope) < 1.5e-2);
    if (rounded->precision() == Precision::bf16 && width < 600) CHECK(out != exact_out);
    CHECK(attend(*rounded, positions, width, heads).second == slope);
  }
}

TEST_CASE("memory of attention grows linearly with the number of positions") {
  State state;
  CausalAttention small{2}, large{2};
  small.declare(state, "a", {1000, 12});
  large.declare(state, "b", {4000, 12});
  CHECK(large.scratch_size(3) <= 4 * small.scratch_size(3));
  CHECK(large.room_size(3) <= 4 * small.room_size(3));
}

TEST_CASE("the gradients of attention agree with differences, within a block and over several") {
  for (const auto& kernels : test::all_kernels()) {
    for (const auto& shape : {std::array{1, 3, 1}, {7, 12, 2}, {5, 30, 2}}) {
      const int positions = shape[0];
      const int features = shape[1];
      const int heads = shape[2];
      CAPTURE(positions);
      const GradientReport report = check_gradients(std::make_unique<CausalAttention>(heads),
                                                    {positions, features}, *kernels, {.step = 1.0 / 64});
      INFO(report.where);
      CHECK(report.worst < 4e-3);
    }
  }
  const GradientReport report = check_gradients(std::make_unique<CausalAttention>(1), {290, 3},
                                                *make_kernels(), {.samples = 1, .step = 1.0 / 8});
  INFO(report.where);
  CHECK(report.worst < 2e-2);
}

TEST_CASE("a dense layer over positions is one over rows") {
  for (const std::int64_t positions : {1, 5, 300}) {
    const GradientReport report = check_gradients(
        std::make_unique<Dense>(4, DenseOptions{.each_position = true, .bias = positions > 1}),
        {positions, 3}, *make_kernels(), {.samples = 2});
    INFO(report.where);
    CHECK(report.worst < 3e-3);
  }
  const GradientReport relu =
      check_gradients(std::make_unique<Dense>(4, DenseOptions{.activation = Activation::relu, .bias = false}),
                      {3}, *make_kernels());
  CHECK(relu.worst < 3e-3);
}

TEST_CASE("attention that cannot be is refused") {
  State state;
  CHECK_THROWS_AS(CausalAttention{0}, UsageError);
  CHECK_THROWS_AS(CausalAttention{2}.declare(state, "a", {4, 9}), UsageError);
  CHECK_THROWS_AS(CausalAttention{2}.declare(state, "a", {12}), UsageError);
}

}  // namespace
}  // namespace lockstep
