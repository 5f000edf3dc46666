#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/chain.hpp>
#include <lockstep/nn/dropout.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/embedding.hpp>
#include <lockstep/nn/flatten.hpp>
#include <lockstep/nn/gelu.hpp>
#include <lockstep/nn/gradient_check.hpp>
#include <lockstep/nn/layer_norm.hpp>
#include <lockstep/nn/relu.hpp>
#include <lockstep/nn/reshape.hpp>
#include <lockstep/nn/sigmoid.hpp>
#include <lockstep/nn/silu.hpp>
#include <lockstep/nn/softmax.hpp>
#include <lockstep/nn/tanh.hpp>

#include "support.hpp"

namespace lockstep {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <class L, class... Arguments>
void check_shapes(std::initializer_list<Shape> shapes, const Arguments&... arguments) {
  const auto kernels = make_kernels();
  for (const Shape& input : shapes) {
    for (const std::int64_t samples : {1, 3, 8}) {
      CAPTURE(to_string(input));
      CAPTURE(samples);
      auto layer = std::make_unique<L>(arguments...);
      CAPTURE(layer->kind());
      const GradientReport report =
          check_gradients(std::move(layer), input, *kernels, {.samples = samples, .step = 1.0 / 128});
      INFO(report.where);
      CHECK(report.worst < 3e-3);
      CHECK(report.checked >= samples * element_count(input));
    }
  }
}

TEST_CASE("the gradients of small layers agree with differences for ragged shapes") {
  check_shapes<Tanh>({{1}, {37}, {3, 5, 2}});
  check_shapes<Sigmoid>({{1}, {37}, {3, 5, 2}});
  check_shapes<Gelu>({{1}, {37}, {3, 5, 2}});
  check_shapes<Silu>({{1}, {37}, {3, 5, 2}});
  check_shapes<Softmax>({{2}, {37}, {3, 5, 2}, {1, 16}});
  check_shapes<Flatten>({{1}, {3, 5, 2}});
  check_shapes<Reshape>({{3, 5, 2}, {30}}, Shape{6, 5});
  check_shapes<Dropout>({{1}, {37}, {3, 5, 2}}, 0.4F);
  check_shapes<Dropout>({{37}}, 0.0F);
  check_shapes<LayerNorm>({{7}, {33}, {3, 5}, {2, 3, 16}});
}

TEST_CASE("the functions are those of the C library within rounding, everywhere, and keep NaN") {
  std::vector<float> in;
  for (int i = -4000; i <= 4000; ++i) in.push_back(static_cast<float>(i) * 0.025F);
  in.push_back(1e-20F);
  in.push_back(3e38F);
  in.push_back(-3e38F);
  std::vector<float> out(in.size());
  const auto check = [&](auto ours, auto theirs, double tolerance) {
    ours(in, out);
    for (std::size_t i = 0; i < in.size(); ++i) {
      const double wanted = theirs(static_cast<double>(in[i]));
      CAPTURE(in[i]);
      const double error = std::abs(static_cast<double>(out[i]) - wanted);
      if (!(error <= tolerance * std::max(1.0, std::abs(wanted)))) CHECK(out[i] == wanted);
    }
    const std::vector<float> nan(17, kNan);
    std::vector<float> kept(17);
    ours(nan, kept);
    for (const float x : kept) CHECK(std::isnan(x));
  };
  check([](const auto& a, auto& b) { lockstep::tanh(a, std::span<float>(b)); },
        [](double x) { return std::tanh(x); }, 2e-6);
  check([](const auto& a, auto& b) { sigmoid(a, std::span<float>(b)); },
        [](double x) { return 1 / (1 + std::exp(-x)); }, 1e-6);
  check([](const auto& a, auto& b) { gelu(a, std::span<float>(b)); },
        [](double x) { return x * 0.5 * std::erfc(-x * std::sqrt(0.5)); }, 1e-6);
  check([](const auto& a, auto& b) { silu(a, std::span<float>(b)); },
        [](double x) { return x / (1 + std::exp(-x)); }, 1e-6);
  const std::vector<float> ones(in.size(), 1.0F);
  check([&](const auto& a, auto& b) { gelu_backward(a, std::span(ones).first(a.size()), b); },
        [](double x) {
          const double density = std::exp(-0.5 * x * x) * 0.3989422804014327;
          return 0.5 * std::erfc(-x * std::sqrt(0.5)) + (std::isinf(x * x) ? 0.0 : x * density);
        },
        1e-6);
}

TEST_CASE("the sum of exponentials is that of the C library, and the largest value wins wherever it is") {
  for (const std::size_t count : {1, 15, 16, 17, 100}) {
    auto values = test::normal_values(count, 3);
    double expected = 0;
    for (const float x : values) expected += std::exp(static_cast<double>(x) - 2);
    for (std::size_t at = 0; at < count; ++at) {
      auto with = values;
      with[at] = 50;
      CHECK(largest(with) == 50.0F);
      with[at] = kNan;
      CHECK(std::isnan(largest(with)));
    }
    CHECK(static_cast<double>(exp_and_sum(values, 2)) == doctest::Approx(expected).epsilon(1e-6));
  }
}

TEST_CASE("softmax sums to one, whatever the size of its input") {
  State state;
  Softmax layer;
  layer.declare(state, "softmax", {5});
  const auto kernels = make_kernels();
  const std::vector<float> in{1e4F, 1e4F, -1e4F, 0, 1};
  std::vector<float> out(5);
  layer.forward({.kernels = *kernels, .samples = 1}, in, out, {});
  CHECK(out[0] == 0.5F);
  CHECK(out[1] == 0.5F);
  CHECK(out[2] == 0.0F);
}

struct Dropped {
  State state;
  Dropout layer{0.25F};
  std::unique_ptr<Kernels> kernels = make_kernels();
  std::vector<float> in = std::vector<float>(8 * 500, 1.0F);

  explicit Dropped(const std::string& name = "a") { layer.declare(state, name, {500}); }

  std::vector<float> run(std::int64_t step, std::int64_t first, std::int64_t samples, bool training = true) {
    std::vector<float> out(static_cast<std::size_t>(samples) * 500);
    std::vector<float> scratch(layer.scratch_size(samples));
    layer.forward({.kernels = *kernels,
                   .samples = samples,
                   .training = training,
                   .draw = {.seed = 5, .step = step, .first_sample = first}},
                  std::span(in).first(out.size()), out, scratch);
    return out;
  }
};

TEST_CASE("dropout is a function of seed, name, step and sample: cut anywhere, the same elements fall") {
  Dropped a;
  const auto whole = a.run(3, 16, 8);
  std::vector<float> pieces;
  for (const auto& [first, samples] : {std::pair{16, 3}, {19, 1}, {20, 4}}) {
    const auto piece = a.run(3, first, samples);
    pieces.insert(pieces.end(), piece.begin(), piece.end());
  }
  CHECK(test::same_bits(whole, pieces));
  CHECK_FALSE(test::same_bits(whole, a.run(4, 16, 8)));
  CHECK_FALSE(test::same_bits(whole, a.run(3, 17, 8)));
  CHECK_FALSE(test::same_bits(whole, Dropped("b").run(3, 16, 8)));
  int zeros = 0;
  for (const float x : whole) {
    zeros += x == 0.0F;
    CHECK((x == 0.0F || x == 1.0F / 0.75F));
  }
  CHECK(zeros > 900);
  CHECK(zeros < 1100);
  CHECK(test::same_bits(a.run(3, 16, 8, false), a.in));
  CHECK_THROWS_AS(Dropout{1.0F}, UsageError);
  CHECK_THROWS_AS(Dropout{-0.1F}, UsageError);
}

TEST_CASE("an embedding looks rows up, adds positions, and its gradients gather what each row got") {
  State state;
  Embedding layer{5, 3, true};
  CHECK(layer.declare(state, "e", {4}) == Shape{4, 3});
  PlainAllocator allocator;
  state.freeze(allocator);
  layer.initialize(state, 1);
  const auto kernels = make_kernels();
  const Pass pass{.kernels = *kernels, .samples = 2};
  const std::vector<float> in{0, 4, 4, 2, 1, 1, 1, 4};
  std::vector<float> out(24);
  layer.forward(pass, in, out, {});
  const auto table = state.parameter_tensors()[0].values();
  const auto positions = state.parameter_tensors()[1].values();
  for (std::size_t i = 0; i < 8; ++i) {
    for (std::size_t j = 0; j < 3; ++j) {
      CHECK(out[i * 3 + j] == table[static_cast<std::size_t>(in[i]) * 3 + j] + positions[i % 4 * 3 + j]);
    }
  }
  Arena gradients = allocator.allocate(state.parameter_elements());
  std::vector<float> output_gradient(24, 1.0F), input_gradient(8, 7.0F);
  for (int twice = 0; twice < 2; ++twice) {  // written, not added
    layer.backward(pass, in, out, output_gradient, input_gradient, gradients.values(), {});
  }
  const auto rows = state.parameter_tensors()[0].in(gradients.values());
  const float counts[] = {1, 3, 1, 0, 3};
  for (std::size_t row = 0; row < 5; ++row) CHECK(rows[row * 3] == counts[row]);
  CHECK(state.parameter_tensors()[1].in(gradients.values())[5] == 2.0F);
  CHECK(input_gradient[0] == 0.0F);
  for (const float bad : {-1.0F, 5.0F, 0.5F, kNan}) {
    const std::vector<float> wrong(8, bad);
    CHECK_THROWS_AS(layer.forward(pass, wrong, out, {}), DataError);
  }
  CHECK_THROWS_AS((Embedding{0, 3}), UsageError);
  CHECK_THROWS_AS(layer.declare(state, "f", {2, 2}), UsageError);
}

TEST_CASE("a reshape to another number of elements is refused") {
  State state;
  CHECK_THROWS_AS(Reshape({4}).declare(state, "r", {5}), UsageError);
}

TEST_CASE("a chain has the gradients of its layers, and an empty one passes everything on") {
  const auto kernels = make_kernels();
  for (const Shape& input : {Shape{4}, Shape{3, 5}}) {
    auto chain = std::make_unique<Chain>();
    chain->add(Tanh{}).add(Dense{6}).add(LayerNorm{}).add(Gelu{}).add(Dense{3});
    const GradientReport report = check_gradients(std::move(chain), input, *kernels, {.step = 1.0 / 128});
    INFO(report.where);
    CHECK(report.worst < 4e-3);
    CHECK(check_gradients(std::make_unique<Chain>(), input, *kernels).worst < 3e-3);
  }
}

TEST_CASE("a chain in a chain names its parameters by the path") {
  State state;
  Chain inner;
  inner.add(Dense{3}).add(Dense{2});
  Chain outer;
  outer.add(std::move(inner)).add(Dense{1});
  outer.declare(state, "net", {4});
  CHECK(state.parameter_tensors()[2].name() == "net/chain0/dense1/weight");
  CHECK(state.parameter_tensors()[4].name() == "net/dense0/weight");
}

}  // namespace
}  // namespace lockstep
