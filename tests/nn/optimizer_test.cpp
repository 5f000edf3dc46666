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
  optimizers.push_back(std::make_unique<Nesterov>(0.9F));
  optimizers.push_back(std::make_unique<Adam>());
  optimizers.push_back(std::make_unique<RmsProp>());
  optimizers.push_back(std::make_unique<Adagrad>());
  optimizers.push_back(std::make_unique<Lars>());
  optimizers.push_back(std::make_unique<Lamb>());
  return optimizers;
}

/// One update of a range, both passes; the trust ratio, where there is one, is `trust_ratio`.
void update(const Optimizer& optimizer, ElementRange range, std::span<float> parameters,
            std::span<const float> gradients, std::span<const std::span<float>> slots, StepScalars scalars) {
  if (const auto* layerwise = dynamic_cast<const LayerwiseOptimizer*>(&optimizer)) {
    layerwise->measure(range, parameters, gradients, slots, scalars);
  }
  optimizer.apply(range, parameters, gradients, slots, scalars);
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
      update(optimizer, {first, last}, p.values(), g.values(), views,
             {.learning_rate = 0.1F, .step = step, .gradient_scale = scale, .weight_decay = 0.01F});
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
    update(*optimizer, {5, 23}, p, gradients, slots, {.learning_rate = 0.1F});
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

TEST_CASE("Nesterov, RMSProp and Adagrad give the answers of their formulas in double") {
  const std::vector<float> gradient{0.3F, -2.0F, 1e-3F};
  std::vector<double> nesterov{1, 1, 1}, rmsprop{1, 1, 1}, adagrad{1, 1, 1}, v(3), s(3), a(3);
  for (int t = 1; t <= 10; ++t) {
    for (std::size_t i = 0; i < 3; ++i) {
      const auto g = static_cast<double>(gradient[i]);
      v[i] = 0.9 * v[i] + g;
      nesterov[i] -= 0.1 * (g + 0.9 * v[i]);
      s[i] = 0.99 * s[i] + 0.01 * g * g;
      rmsprop[i] -= 0.1 * g / (std::sqrt(s[i]) + 1e-8);
      a[i] += g * g;
      adagrad[i] -= 0.1 * g / (std::sqrt(a[i]) + 1e-10);
    }
  }
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(run(Nesterov(), {1, 1, 1}, gradient, {3}, 10).parameters[i] ==
          doctest::Approx(nesterov[i]).epsilon(1e-4));
    CHECK(run(RmsProp(), {1, 1, 1}, gradient, {3}, 10).parameters[i] ==
          doctest::Approx(rmsprop[i]).epsilon(1e-4));
    CHECK(run(Adagrad(), {1, 1, 1}, gradient, {3}, 10).parameters[i] ==
          doctest::Approx(adagrad[i]).epsilon(1e-4));
  }
}

TEST_CASE("LARS and LAMB give the answers of their formulas in double") {
  const std::vector<float> gradient{0.3F, -2.0F, 1e-3F};
  constexpr double kDecay = 0.01;
  std::vector<double> lars{1, 2, 3}, lamb{1, 2, 3}, velocity(3), m(3), v(3);
  std::vector<float> lars_p{1, 2, 3}, lamb_p{1, 2, 3}, lars_v(3), lamb_m(3), lamb_v(3);
  const std::vector<std::span<float>> lars_slots{lars_v}, lamb_slots{lamb_m, lamb_v};
  const auto norm = [](const std::vector<double>& x) {
    return std::sqrt(x[0] * x[0] + x[1] * x[1] + x[2] * x[2]);
  };
  const auto step_of = [&](const LayerwiseOptimizer& optimizer, std::vector<float>& p,
                           const std::vector<std::span<float>>& slots, std::int64_t step) {
    StepScalars scalars{.learning_rate = 0.1F, .step = step, .weight_decay = static_cast<float>(kDecay)};
    // In two parts, as ranks that share a tensor do.
    const SquareSums a = optimizer.measure({0, 2}, p, gradient, slots, scalars);
    const SquareSums b = optimizer.measure({2, 3}, p, gradient, slots, scalars);
    scalars.trust_ratio = optimizer.trust_ratio({a.parameters + b.parameters, a.update + b.update}, scalars);
    optimizer.apply({0, 3}, p, gradient, slots, scalars);
  };
  for (int t = 1; t <= 10; ++t) {
    step_of(Lars(0.9F, 0.5F), lars_p, lars_slots, t - 1);
    step_of(Lamb(), lamb_p, lamb_slots, t - 1);
    const std::vector<double> g(gradient.begin(), gradient.end());
    const double ratio = 0.5 * norm(lars) / (norm(g) + kDecay * norm(lars));
    std::vector<double> u(3);
    for (std::size_t i = 0; i < 3; ++i) {
      velocity[i] = 0.9 * velocity[i] + ratio * (g[i] + kDecay * lars[i]);
      lars[i] -= 0.1 * velocity[i];
      m[i] = 0.9 * m[i] + 0.1 * g[i];
      v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
      u[i] = m[i] / (1 - std::pow(0.9, t)) / (std::sqrt(v[i] / (1 - std::pow(0.999, t))) + 1e-6) +
             kDecay * lamb[i];
    }
    const double trust = norm(lamb) / norm(u);
    for (std::size_t i = 0; i < 3; ++i) lamb[i] -= 0.1 * trust * u[i];
  }
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(lars_p[i] == doctest::Approx(lars[i]).epsilon(1e-4));
    CHECK(lamb_p[i] == doctest::Approx(lamb[i]).epsilon(1e-4));
  }
}

TEST_CASE("a tensor of zeros and a gradient of zeros have a trust ratio of 1") {
  CHECK(Lars().trust_ratio({0, 1}, {}) == 1.0F);
  CHECK(Lars().trust_ratio({1, 0}, {}) == 1.0F);
  CHECK(Lamb().trust_ratio({0, 1}, {}) == 1.0F);
  CHECK(Lamb().trust_ratio({1, 0}, {}) == 1.0F);
  CHECK(std::isnan(Lamb().trust_ratio({1, std::numeric_limits<double>::quiet_NaN()}, {})));
}

TEST_CASE("gradients are cut by value after they are scaled, and NaN stays NaN") {
  const std::vector<float> gradients{4.0F, -4.0F, 0.5F, kNan};
  std::vector<float> p(4);
  Sgd().apply({0, 4}, p, gradients, {}, {.learning_rate = 1, .gradient_scale = 0.5F, .clip_value = 1.5F});
  CHECK(p[0] == -1.5F);
  CHECK(p[1] == 1.5F);
  CHECK(p[2] == -0.25F);
  CHECK(std::isnan(p[3]));
}

TEST_CASE("weights decay by the rate times the decay") {
  std::vector<float> p{1.0F, 2.0F, 4.0F};
  decay_weights({1, 3}, p, 0.5F, 0.5F);
  CHECK(p == std::vector<float>{1.0F, 1.5F, 3.0F});
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
  CHECK_THROWS_AS(Nesterov(1.0F), UsageError);
  CHECK_THROWS_AS(RmsProp(1.0F), UsageError);
  CHECK_THROWS_AS(RmsProp(0.9F, -1.0F), UsageError);
  CHECK_THROWS_AS(Adagrad{kNan}, UsageError);
  CHECK_THROWS_AS(Lars(0.9F, 0.0F), UsageError);
  CHECK_THROWS_AS(Lamb(-0.5F), UsageError);
}

}  // namespace
}  // namespace lockstep
