#include <cmath>

#include <doctest/doctest.h>

#include <lockstep/base/random.hpp>
#include <lockstep/scaling/model.hpp>

namespace lockstep {
namespace {

/// A training of 64 micro-batches of 32 samples: 2 ms each, a reduction of 0.1 ms a round and 0.5 ms for its
/// bytes, ranks that are late by 0.05 ms, 0.4 ms for what every rank updates and 1 ms shared out.
std::array<double, kStepParts.size()> law(std::int64_t ranks, std::int64_t micro_batches) {
  const auto n = static_cast<double>(ranks);
  const double most = std::ceil(static_cast<double>(micro_batches) / n);
  return {1e-5,
          2e-3 * most,
          1e-4 * std::log2(n) + 5e-4 * (n - 1) / n,
          5e-5 * std::sqrt(2 * std::log(n)),
          4e-4 + 1e-3 / n,
          0,
          2e-5};
}

std::vector<ScalingSample> samples_of(std::vector<std::int64_t> rank_counts, double noise) {
  std::vector<ScalingSample> samples;
  const Random random(7, Purpose::test);
  std::uint32_t draw = 0;
  for (const ScalingMode mode : {ScalingMode::strong, ScalingMode::weak}) {
    for (const std::int64_t ranks : rank_counts) {
      for (int repeat = 0; repeat < 7; ++repeat) {
        ScalingSample s{.mode = mode, .ranks = ranks, .repeat = repeat, .micro_batch = 32};
        s.global_batch = mode == ScalingMode::strong ? 2048 : 256 * ranks;
        s.part_seconds = law(ranks, s.global_batch / 32);
        s.step_seconds = 0;
        for (double& part : s.part_seconds) {
          part *= 1 + noise * static_cast<double>(random.normal(draw++));
          s.step_seconds += part;
        }
        samples.push_back(s);
      }
    }
  }
  return samples;
}

double true_seconds(std::int64_t ranks, std::int64_t micro_batches) {
  double sum = 0;
  for (const double part : law(ranks, micro_batches)) sum += part;
  return sum;
}

}  // namespace

TEST_CASE("a law that the samples follow is found, and predicts numbers of ranks far beyond them") {
  const ScalingFit exact = fit_scaling(samples_of({1, 2, 4, 8, 16}, 0));
  CHECK(exact.refusal.empty());
  CHECK(exact.worst_error < 0.01);
  const ScalingFit noisy = fit_scaling(samples_of({1, 2, 4, 8, 16}, 0.03));
  CHECK(noisy.refusal.empty());
  CHECK(noisy.held_out.size() == 10);
  for (const std::int64_t ranks : {32, 64, 1024, 8192}) {
    CAPTURE(ranks);
    const double weak = true_seconds(ranks, 8 * ranks);
    CHECK(exact.model.step_seconds(ranks, 256 * ranks) == doctest::Approx(weak).epsilon(0.001));
    CHECK(noisy.model.step_seconds(ranks, 256 * ranks) == doctest::Approx(weak).epsilon(0.1));
    const double strong = true_seconds(ranks, 64);
    CHECK(exact.model.step_seconds(ranks, 2048) == doctest::Approx(strong).epsilon(0.001));
    CHECK(noisy.model.step_seconds(ranks, 2048) == doctest::Approx(strong).epsilon(0.1));
  }
}

TEST_CASE("a prediction says what limits, and the batch that would help") {
  const ScalingModel model = fit_scaling(samples_of({1, 2, 4, 8, 16}, 0)).model;
  const auto strong = predict(model, ScalingMode::strong, 1, 16, 2048);
  CHECK(strong.front().ranks == 16);
  CHECK(strong.back().ranks == 8192);
  CHECK(strong.size() == 10);
  for (std::size_t i = 1; i < strong.size(); ++i) CHECK(strong[i].efficiency < strong[i - 1].efficiency);
  CHECK(strong[0].efficiency == doctest::Approx(true_seconds(1, 64) / true_seconds(16, 64) / 16));
  CHECK(strong[0].limit == "compute");
  CHECK(strong[2].limit == "reduction: latency inside nodes");
  CHECK(strong[3].limit == "ranks without a micro-batch, from 65 on");
  const auto weak = predict(model, ScalingMode::weak, 1, 16, 256);
  CHECK(weak[0].limit == "compute");
  CHECK(weak[0].efficiency == doctest::Approx(true_seconds(1, 8) / true_seconds(16, 128)));
  for (const ScalingPrediction& p : strong) {
    CAPTURE(p.ranks);
    REQUIRE(p.batch > 0);
    CHECK(p.batch % (32 * p.ranks) == 0);
    const auto share = [&](std::int64_t batch) {
      return model.parts(p.ranks, p.nodes, batch)[1] / model.step_seconds(p.ranks, batch);
    };
    CHECK(share(p.batch) >= 0.8);
    if (p.batch > 32 * p.ranks * 2) CHECK(share(p.batch / 2) < 0.8);
  }
}

TEST_CASE("a number of ranks that is held out is predicted by a law that has not seen it") {
  const auto all = samples_of({1, 2, 4, 8}, 0.05);
  const ScalingFit fit = fit_scaling(all);
  CHECK(fit.held_out.size() == 8);
  for (const ScalingFit::HeldOut& held : fit.held_out) {
    CAPTURE(held.ranks);
    auto others = all;
    std::erase_if(others, [&](const ScalingSample& s) { return s.ranks == held.ranks; });
    const std::int64_t batch = held.mode == ScalingMode::strong ? 2048 : 256 * held.ranks;
    CHECK(held.predicted == fit_scaling(others).model.step_seconds(held.ranks, batch));
    CHECK(held.predicted != fit.model.step_seconds(held.ranks, batch));
  }
}

TEST_CASE("what it costs to cross a network is fitted where several nodes were measured, else probed") {
  // 4 MB of gradients between nodes of 4 ranks: 20 us a message, 2 GB/s.
  constexpr double kBytes = 4e6;
  const ScalingNetwork network{20e-6, 2e9};
  const auto between = [&](double nodes) {
    return 2 * network.latency * std::log2(nodes) + 2 * kBytes / network.bandwidth * (nodes - 1) / nodes;
  };
  const auto truth = [&](std::int64_t ranks) {
    auto parts = law(ranks, 8 * ranks);
    const double inside = std::min(4.0, static_cast<double>(ranks));
    const double nodes = std::ceil(static_cast<double>(ranks) / 4);
    parts[2] = 1e-4 * std::log2(inside) + 5e-4 * (inside - 1) / inside + between(nodes);
    return parts;
  };
  const auto study = [&](std::vector<std::int64_t> rank_counts) {
    std::vector<ScalingSample> samples;
    for (const std::int64_t ranks : rank_counts) {
      ScalingSample s{.mode = ScalingMode::weak, .ranks = ranks, .nodes = (ranks + 3) / 4, .micro_batch = 32};
      s.global_batch = 256 * ranks;
      s.gradient_bytes = kBytes;
      s.part_seconds = truth(ranks);
      s.step_seconds = 0;
      for (const double part : s.part_seconds) s.step_seconds += part;
      samples.push_back(s);
    }
    return samples;
  };
  const auto seconds = [&](std::int64_t ranks) {
    double sum = 0;
    for (const double part : truth(ranks)) sum += part;
    return sum;
  };
  const ScalingFit fitted = fit_scaling(study({1, 2, 3, 4, 8, 16, 32}));
  CHECK(fitted.model.ranks_per_node == 4);
  CHECK(fitted.model.network.latency == doctest::Approx(network.latency).epsilon(0.01));
  CHECK(fitted.model.network.bandwidth == doctest::Approx(network.bandwidth).epsilon(0.01));
  const ScalingFit probed = fit_scaling(study({1, 2, 3, 4}), network);
  const ScalingFit blind = fit_scaling(study({1, 2, 3, 4}));
  CHECK(!blind.model.network.known());
  for (const std::int64_t ranks : {8, 64, 1024, 8192}) {
    CAPTURE(ranks);
    CHECK(fitted.model.step_seconds(ranks, 256 * ranks) == doctest::Approx(seconds(ranks)).epsilon(0.01));
    CHECK(probed.model.step_seconds(ranks, 256 * ranks) == doctest::Approx(seconds(ranks)).epsilon(0.01));
    CHECK(blind.model.step_seconds(ranks, 256 * ranks) < 0.95 * seconds(ranks));
  }
  const auto predictions = predict(probed.model, ScalingMode::weak, 1, 8, 32);
  CHECK(predictions.front().nodes == 2);
  CHECK(predictions.front().limit == "reduction: bytes between nodes");
}

TEST_CASE("no term of a law is negative, whatever the samples say") {
  auto samples = samples_of({1, 2, 4, 8}, 0);
  for (ScalingSample& s : samples) {
    // The update takes longer with more ranks, and a reduction gets ever faster: no sum of the terms does so.
    s.part_seconds[static_cast<std::size_t>(StepPart::update)] = 1e-3 * static_cast<double>(s.ranks);
    s.part_seconds[static_cast<std::size_t>(StepPart::reduction)] = 1e-3 / static_cast<double>(s.ranks);
  }
  const ScalingFit fit = fit_scaling(samples);
  for (const auto& part : fit.model.coefficients) {
    for (const double coefficient : part) CHECK(coefficient >= 0);
  }
}

TEST_CASE("what cannot be checked, or fails the check, is not predicted from") {
  CHECK(fit_scaling(samples_of({1, 2}, 0)).refusal.find("it has 2 numbers of ranks") == 0);
  auto mixed = samples_of({1, 2, 4}, 0);
  mixed[3].micro_batch = 16;
  CHECK(fit_scaling(mixed).refusal.find("micro-batches of different sizes") != std::string::npos);
  // 8 ranks are three times as slow as they should be: another machine, say.
  auto odd = samples_of({1, 2, 4, 8}, 0);
  for (ScalingSample& s : odd) {
    if (s.ranks != 8) continue;
    s.step_seconds *= 3;
    for (double& part : s.part_seconds) part *= 3;
  }
  const ScalingFit fit = fit_scaling(odd);
  CHECK(fit.worst_error > 0.1);
  CHECK(fit.refusal.find("a law that has not seen ") == 0);
}

}  // namespace lockstep
