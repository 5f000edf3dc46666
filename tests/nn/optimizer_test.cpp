#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/optimizer.hpp>

#include "support.hpp"

namespace lockstep {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<std::unique_ptr<Optimizer>> all_optimizers() {
  std::vector<std::unique_ptr<Optimizer>> optimizers;
  optimizers.push_back(std::make_unique<Sgd>());
  optimizers.push_back(std::make_unique<Momentum>(0.9F));
  optimizers.push_back(std::make_unique<Adam>());
  return optimizers;
}

/// Parameters and slots after some updates, each done range by range.
struct Run {
  std::vector<float> parameters;
  std::vector<std::vector<float>> slots;
};

Run run(const Optimizer& optimizer, std::vector<float> parameters, std::span<const float> gradients,
        const std::vector<std::size_t>& cuts, int steps, float scale = 1, std::size_t shift = 0) {
  const test::Shifted p(parameters, shift), g(gradients, (shift * 3) % 16);
  std::vector<test::Shifted> slots;
  std::vector<std::span<float>> views;
  for (std::size_t i = 0; i < optimizer.slot_names().size(); ++i) {
    slots.emplace_back(std::vector<float>(parameters.size()), (shift + i) % 16);
    views.push_back(slots.back().values());
  }
  for (int step = 0; step < steps; ++step) {
    std::size_t first = 0;
    for (const std::size_t last : cuts) {
      optimizer.apply({first, last}, p.values(), g.values(), views,
                      {.learning_rate = 0.1F, .step = step, .gradient_scale = scale});
      first = last;
    }
  }
  Run result;
  result.parameters.assign(p.values().begin(), p.values().end());
  for (const auto& slot : views) result.slots.emplace_back(slot.begin(), slot.end());
  return result;
}

TEST_CASE("an update has the same bits however the arena is cut and wherever it lies") {
  const std::size_t size = 1000;
  const auto parameters = test::normal_values(size, 1);
  const auto gradients = test::normal_values(size, 2);
  for (const auto& optimizer : all_optimizers()) {
    CAPTURE(optimizer->describe());
    const Run whole = run(*optimizer, parameters, gradients, {size}, 5);
    const std::vector<std::vector<std::size_t>> all_cuts{
        {1, size}, {16, 512, size}, {3, 4, 21, 500, 501, 999, size}};
    for (const auto& cuts : all_cuts) {
      for (const std::size_t shift : {0, 1, 7}) {
        const Run parts = run(*optimizer, parameters, gradients, cuts, 5, 1, shift);
        CHECK(test::same_bits(parts.parameters, whole.parameters));
        for (std::size_t i = 0; i < whole.slots.size(); ++i)
          CHECK(test::same_bits(parts.slots[i], whole.slots[i]));
      }
    }
  }
}

TEST_CASE("nothing outside the range changes") {
  const auto parameters = test::normal_values(40, 3);
  const auto gradients = test::normal_values(40, 4);
  for (const auto& optimizer : all_optimizers()) {
    std::vector<float> p = parameters;
    std::vector<float> slot(40), other(40);
    const std::vector<std::span<float>> slots{slot, other};
    optimizer->apply({5, 23}, p, gradients, slots, {.learning_rate = 0.1F});
    for (std::size_t i = 0; i < 40; ++i) {
      const bool inside = i >= 5 && i < 23;
      CHECK((p[i] != parameters[i]) == inside);
      if (!inside) CHECK(slot[i] == 0.0F);
    }
  }
}

TEST_CASE("SGD and momentum give the answers of their formulas") {
  const Run sgd = run(Sgd(), {1.0F, 2.0F}, std::vector<float>{0.5F, -1.0F}, {2}, 2);
  CHECK(sgd.parameters[0] == doctest::Approx(0.9));
  CHECK(sgd.parameters[1] == doctest::Approx(2.2));
  const Run momentum = run(Momentum(0.5F), {1.0F}, std::vector<float>{1.0F}, {1}, 3);
  CHECK(momentum.slots[0][0] == 1.75F);                           // 1, 1.5, 1.75
  CHECK(momentum.parameters[0] == doctest::Approx(1.0 - 0.425));  // less a tenth of their sum
}

TEST_CASE("Adam gives the answers of its formula in double") {
  const std::vector<float> gradient{0.3F, -2.0F, 1e-3F};
  std::vector<double> p{1, 1, 1}, m(3), v(3);
  for (int t = 1; t <= 10; ++t) {
    for (std::size_t i = 0; i < 3; ++i) {
      const auto g = static_cast<double>(gradient[i]);
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.999 * v[i] + 0.001 * g * g;
      p[i] -= 0.1 * (m[i] / (1 - std::pow(0.9, t))) / (std::sqrt(v[i] / (1 - std::pow(0.999, t))) + 1e-8);
    }
  }
  const Run adam = run(Adam(), {1, 1, 1}, gradient, {3}, 10);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(adam.parameters[i] == doctest::Approx(p[i]).epsilon(1e-4));
    CHECK(adam.slots[0][i] == doctest::Approx(m[i]).epsilon(1e-4));
    CHECK(adam.slots[1][i] == doctest::Approx(v[i]).epsilon(1e-4));
  }
}

TEST_CASE("padding stays zero and a gradient that is NaN shows") {
  for (const auto& optimizer : all_optimizers()) {
    const Run zero = run(*optimizer, std::vector<float>(16), std::vector<float>(16), {16}, 3);
    for (const float x : zero.parameters) CHECK(x == 0.0F);
    const Run nan = run(*optimizer, {1.0F}, std::vector<float>{kNan}, {1}, 1);
    CHECK(std::isnan(nan.parameters[0]));
  }
}

TEST_CASE("the gradient scale multiplies gradients before anything else") {
  const auto parameters = test::normal_values(20, 5);
  const auto gradients = test::normal_values(20, 6);
  std::vector<float> halved = gradients;
  for (float& x : halved) x *= 0.5F;
  for (const auto& optimizer : all_optimizers()) {
    CHECK(test::same_bits(run(*optimizer, parameters, gradients, {20}, 3, 0.5F).parameters,
                          run(*optimizer, parameters, halved, {20}, 3).parameters));
  }
}

TEST_CASE("slots are declared under their names and found again") {
  State state;
  state.parameter("w", {20});
  const Adam adam;
  adam.declare(state);
  PlainAllocator allocator;
  state.freeze(allocator);
  CHECK(state.slot_names() == std::vector<std::string>{"m", "v"});
  const auto slots = adam.slots(state);
  REQUIRE(slots.size() == 2);
  CHECK(slots[1].data() == state.slot_values("v").data());
}

TEST_CASE("the norm has the same bits whoever sums which blocks") {
  const std::size_t size = 3 * kNormBlock + 160;
  const auto gradients = test::normal_values(size, 7);
  std::vector<double> whole(norm_blocks(size)), parts(norm_blocks(size));
  CHECK(whole.size() == 4);
  block_square_sums(gradients, 0, 4, whole);
  block_square_sums(test::Shifted(gradients, 5).values(), 2, 4, parts);
  block_square_sums(gradients, 0, 2, parts);
  CHECK(whole == parts);
  double plain = 0;
  for (const float x : gradients) plain += static_cast<double>(x) * static_cast<double>(x);
  CHECK(norm_from_blocks(whole) == doctest::Approx(std::sqrt(plain)));
}

TEST_CASE("clipping scales to the limit, leaves smaller norms alone and does not hide NaN") {
  CHECK(clip_scale(0.5, 1.0) == 1.0F);
  CHECK(clip_scale(4.0, 1.0) == 0.25F);
  CHECK(clip_scale(0.0, 1.0) == 1.0F);
  CHECK(std::isnan(clip_scale(std::numeric_limits<double>::quiet_NaN(), 1.0)));
}

TEST_CASE("settings out of range are refused") {
  CHECK_THROWS_AS(Momentum(1.0F), UsageError);
  CHECK_THROWS_AS(Momentum(-0.1F), UsageError);
  CHECK_THROWS_AS(Momentum{kNan}, UsageError);
  CHECK_THROWS_AS(Adam(0.9F, 1.0F), UsageError);
  CHECK_THROWS_AS(Adam(0.9F, 0.999F, 0.0F), UsageError);
}

}  // namespace
}  // namespace lockstep
