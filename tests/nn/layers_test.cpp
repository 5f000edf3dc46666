#include <algorithm>
#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/conv2d.hpp>
#include <lockstep/nn/conv_transpose2d.hpp>
#include <lockstep/nn/dense.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/gradient_check.hpp>
#include <lockstep/nn/relu.hpp>
#include <lockstep/nn/softmax_cross_entropy.hpp>

#include "support.hpp"

namespace lockstep {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST_CASE("the gradients of Dense agree with differences for ragged shapes and every library") {
  for (const auto& kernels : test::all_kernels()) {
    for (const Shape& input : {Shape{1}, Shape{7}, Shape{3, 5}, Shape{33}}) {
      for (const std::int64_t outputs : {1, 4, 17}) {
        for (const std::int64_t samples : {1, 3, 9}) {
          for (const Activation activation : {Activation::none, Activation::relu}) {
            CAPTURE(kernels->name());
            CAPTURE(to_string(input));
            CAPTURE(outputs);
            CAPTURE(samples);
            const GradientReport report = check_gradients(std::make_unique<Dense>(outputs, activation), input,
                                                          *kernels, {.samples = samples});
            INFO(report.where);
            CHECK(report.worst < 3e-3);
            CHECK(report.skipped < report.checked);
          }
        }
      }
    }
  }
}

// What bf16 keeps of a number is within 2^-9 of it, so differences of what it was before are good to that
// share of the numbers, not of the step: steps are long, which functions that are linear allow.
TEST_CASE("in bf16 the gradients of Dense and of convolutions agree with differences within its rounding") {
  const GradientCheckOptions options{.step = 2};
  for (const KernelChoice choice : built_kernels()) {
    for (const Precision precision : {Precision::bf16, Precision::emulated_bf16}) {
      const auto kernels = make_kernels(choice, precision);
      CAPTURE(kernels->name());
      const auto check = [&](std::unique_ptr<Layer> layer, const Shape& input) {
        CAPTURE(layer->describe());
        const GradientReport report = check_gradients(std::move(layer), input, *kernels, options);
        INFO(report.where);
        CHECK(report.worst < 1e-2);
        CHECK(report.skipped < report.checked / 20);
      };
      check(std::make_unique<Dense>(17), {33});
      check(std::make_unique<Dense>(40), {7, 5});
      check(std::make_unique<Conv2d>(6, 3, ConvolutionOptions{.stride = 2, .padding = 1}), {5, 6, 4});
      check(std::make_unique<ConvTranspose2d>(4, 2, 2), {3, 4, 3});
    }
  }
}

TEST_CASE("the gradient of Relu agrees with differences") {
  const auto kernels = make_kernels();
  for (const Shape& input : {Shape{1}, Shape{37}, Shape{3, 5, 2}}) {
    const GradientReport report = check_gradients(std::make_unique<Relu>(), input, *kernels);
    CHECK(report.worst < 3e-3);
    CHECK(report.checked >= 3);
  }
}

/// Forgets one factor: the check must notice.
class WrongRelu final : public Layer {
 public:
  std::string_view kind() const noexcept override { return "wrong"; }
  std::string describe() const override { return "wrong"; }
  Shape declare(State&, const std::string&, const Shape& input) override { return input; }
  void forward(const Pass&, std::span<const float> input, std::span<float> output,
               std::span<float>) const override {
    relu(input, output);
  }
  void backward(const Pass&, std::span<const float>, std::span<const float>, std::span<float> output_gradient,
                std::span<float> input_gradient, std::span<float>, std::span<float>) const override {
    std::copy(output_gradient.begin(), output_gradient.end(), input_gradient.begin());
  }
};

TEST_CASE("the gradient check finds a wrong layer and says where") {
  const GradientReport report = check_gradients(std::make_unique<WrongRelu>(), {20}, *make_kernels());
  CHECK(report.worst > 0.1);
  CHECK(report.where.starts_with("input["));
}

/// output = weight * input, element by element, with one mistake of those that differences alone do not show.
class Careless final : public Layer {
 public:
  enum class Mistake { none, adds, forgets_a_weight, forgets_an_output, forgets_an_input, trusts_its_room };
  explicit Careless(Mistake mistake) : mistake_(mistake) {}
  std::string_view kind() const noexcept override { return "careless"; }
  std::string describe() const override { return "careless"; }
  Shape declare(State& state, const std::string& name, const Shape& input) override {
    weight_ = state.parameter(name + "/weight", input);
    return input;
  }
  void initialize(const State& state, std::uint64_t seed) const override {
    fill_normal(state, weight_, seed, 1);
  }
  std::size_t room_size(std::int64_t) const override { return 1; }
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float>) const override {
    const float more = mistake_ == Mistake::trusts_its_room ? pass.room[0] : 0.0F;
    const std::size_t end = output.size() - (mistake_ == Mistake::forgets_an_output ? 1 : 0);
    for (std::size_t i = 0; i < end; ++i) output[i] = weight_.values()[i % weight_.size()] * input[i] + more;
  }
  void backward(const Pass&, std::span<const float> input, std::span<const float>,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float>) const override {
    const std::span<float> to = weight_.in(gradients);
    if (mistake_ != Mistake::adds) {
      std::ranges::fill(to.first(to.size() - (mistake_ == Mistake::forgets_a_weight ? 1 : 0)), 0.0F);
    }
    for (std::size_t i = 0; i < input.size(); ++i) to[i % to.size()] += output_gradient[i] * input[i];
    const std::size_t first = mistake_ == Mistake::forgets_an_input ? 1 : 0;
    for (std::size_t i = first; i < input.size(); ++i) {
      input_gradient[i] = output_gradient[i] * weight_.values()[i % weight_.size()];
    }
  }

 private:
  Mistake mistake_;
  Tensor weight_;
};

TEST_CASE("the gradient check finds what a layer does not write, adds to, or takes from its room") {
  using Mistake = Careless::Mistake;
  const auto check = [](Mistake mistake) {
    return check_gradients(std::make_unique<Careless>(mistake), {7}, *make_kernels());
  };
  CHECK(check(Mistake::none).worst < 3e-3);
  CHECK(check(Mistake::none).checked == 3 * 7 + 7);
  for (const Mistake mistake : {Mistake::adds, Mistake::forgets_a_weight, Mistake::forgets_an_output,
                                Mistake::forgets_an_input, Mistake::trusts_its_room}) {
    CAPTURE(static_cast<int>(mistake));
    const GradientReport report = check(mistake);
    CHECK_FALSE(report.worst < 3e-3);  // as callers ask it: NaN is no success
    CHECK_FALSE(report.where.empty());
  }
  CHECK(check(Mistake::adds).where == "layer/weight[0]");
  CHECK(check(Mistake::forgets_a_weight).where == "layer/weight[6]");
  CHECK(check(Mistake::forgets_an_input).where == "input[0]");
}

TEST_CASE("initial values depend on the seed and the tensor, lie within the limit, and biases are zero") {
  State state;
  Dense first{30, Activation::relu};
  Dense second{30};
  first.declare(state, "a", {30});
  second.declare(state, "b", {30});
  PlainAllocator allocator;
  state.freeze(allocator);
  first.initialize(state, 1);
  second.initialize(state, 1);
  const auto& tensors = state.parameter_tensors();
  const std::vector<float> before(tensors[0].values().begin(), tensors[0].values().end());
  float largest_he = 0, largest_glorot = 0;
  for (const float x : tensors[0].values()) largest_he = std::max(largest_he, std::abs(x));
  for (const float x : tensors[2].values()) largest_glorot = std::max(largest_glorot, std::abs(x));
  CHECK(largest_he <= std::sqrt(6.0F / 30));
  CHECK(largest_he > 0.9F * std::sqrt(6.0F / 30));
  CHECK(largest_glorot <= std::sqrt(6.0F / 60));
  CHECK(largest_glorot > 0.9F * std::sqrt(6.0F / 60));
  for (const float x : tensors[1].values()) CHECK(x == 0.0F);
  first.initialize(state, 2);
  CHECK_FALSE(test::same_bits(before, tensors[0].values()));
  first.initialize(state, 1);
  CHECK(test::same_bits(before, tensors[0].values()));
}

TEST_CASE("a dense layer without outputs is refused") {
  CHECK_THROWS_AS(Dense{0}, UsageError);
}

TEST_CASE("relu and its gradient keep NaN, and cut at zero") {
  const std::vector<float> in{-1.0F, 0.0F, 2.0F, kNan};
  std::vector<float> out(4), gradient(4);
  relu(in, out);
  CHECK(out[0] == 0.0F);
  CHECK(out[1] == 0.0F);
  CHECK(out[2] == 2.0F);
  CHECK(std::isnan(out[3]));
  relu_backward(out, std::vector<float>{5, 5, 5, kNan}, gradient);
  CHECK(gradient[0] == 0.0F);
  CHECK(gradient[1] == 0.0F);
  CHECK(gradient[2] == 5.0F);
  CHECK(std::isnan(gradient[3]));
}

TEST_CASE("sums have the same bits wherever the values lie") {
  for (const std::size_t count : {1, 15, 16, 17, 100, 4096}) {
    const auto values = test::normal_values(count, 9);
    const double expected = sum_of_squares(values);
    double plain = 0;
    for (const float x : values) plain += static_cast<double>(x) * static_cast<double>(x);
    CHECK(expected == doctest::Approx(plain));
    for (const std::size_t shift : {1, 2, 5, 15})
      CHECK(sum_of_squares(test::Shifted(values, shift).values()) == expected);
  }
  const auto rows = test::normal_values(9 * 37, 10);
  std::vector<float> sums(37);
  column_sums(rows, sums);
  for (const std::size_t shift : {1, 7}) {
    const test::Shifted moved(sums, shift);
    column_sums(test::Shifted(rows, 3).values(), moved.values());
    CHECK(test::same_bits(sums, moved.values()));
  }
}

TEST_CASE("a transposition puts every element in its place, for shapes with and without whole tiles") {
  for (const std::size_t rows : {1, 15, 16, 33}) {
    for (const std::size_t columns : {1, 16, 20, 48}) {
      const auto input = test::normal_values(rows * columns, 11);
      std::vector<float> output(input.size());
      transpose(rows, columns, input, output);
      bool right = true;
      for (std::size_t i = 0; i < input.size(); ++i) {
        right = right && output[(i % columns) * rows + i / columns] == input[i];
      }
      CHECK(right);
    }
  }
}

TEST_CASE("softmax cross-entropy has known values, counts what is right, and scales its gradient") {
  const SoftmaxCrossEntropy loss;
  const std::vector<float> logits{0, 0, 0, 0, 1, 3};  // two samples of three classes
  const std::vector<std::int32_t> labels{1, 2};
  std::vector<float> gradient(6);
  const Score score = loss.evaluate(2, logits, std::span<const std::int32_t>(labels), 0.5F, gradient);
  const double second = std::log(std::exp(-3.0) + std::exp(-2.0) + 1.0);
  CHECK(score.loss_sum == doctest::Approx(std::log(3.0) + second));
  CHECK(score.correct == 1);  // a tie goes to the first class
  CHECK(gradient[0] == doctest::Approx(0.5 / 3));
  CHECK(gradient[1] == doctest::Approx(0.5 * (1.0 / 3 - 1)));
  CHECK(gradient[5] == doctest::Approx(0.5 * (std::exp(-second) - 1)));
}

TEST_CASE("softmax cross-entropy survives large logits") {
  const SoftmaxCrossEntropy loss;
  const std::vector<float> logits{1e4F, -1e4F};
  const std::vector<std::int32_t> wrong{1};
  std::vector<float> gradient(2);
  CHECK(loss.evaluate(1, logits, std::span<const std::int32_t>(wrong), 1.0F, gradient).loss_sum ==
        doctest::Approx(2e4));
  CHECK(gradient[0] == 1.0F);
  CHECK(gradient[1] == -1.0F);
}

TEST_CASE("one NaN among the logits makes the loss NaN, wherever it is, and the sample wrong") {
  const SoftmaxCrossEntropy loss;
  for (std::size_t at = 0; at < 3; ++at) {
    for (std::int32_t label = 0; label < 3; ++label) {
      std::vector<float> logits{1, 2, 3};
      logits[at] = kNan;
      const std::vector<std::int32_t> labels{label};
      const Score score = loss.evaluate(1, logits, std::span<const std::int32_t>(labels), 1.0F, {});
      CHECK(std::isnan(score.loss_sum));
      CHECK(score.correct == 0);
    }
  }
}

TEST_CASE("a label that is no class is an error that names it") {
  const SoftmaxCrossEntropy loss;
  const std::vector<float> logits{1, 2, 3};
  for (const std::int32_t label : {-1, 3}) {
    const std::vector<std::int32_t> labels{label};
    CHECK_THROWS_WITH_AS(loss.evaluate(1, logits, std::span<const std::int32_t>(labels), 1.0F, {}),
                         doctest::Contains(("label " + std::to_string(label)).c_str()), DataError);
  }
  CHECK_THROWS_AS(loss.evaluate(1, logits, std::span<const std::int32_t>(), 1.0F, {}), UsageError);
  CHECK_THROWS_AS(loss.check({}), UsageError);
}

}  // namespace
}  // namespace lockstep
