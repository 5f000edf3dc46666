#include <cstring>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/mpi/simulated_world.hpp>
#include <lockstep/nn/mean_squared_error.hpp>
#include <lockstep/train/evaluator.hpp>

#include "train_support.hpp"

namespace lockstep {
namespace {

struct Subject {
  Subject() : model(test::small_model(7)), kernels(make_kernels()) {
    model.declare(state);
    PlainAllocator allocator;
    state.freeze(allocator);
    model.initialize(state, 3);
  }
  State state;
  Sequential model;
  std::unique_ptr<Kernels> kernels;
};

/// Fails on one sample.
class TornDataset final : public Dataset {
 public:
  std::int64_t size() const noexcept override { return 10; }
  const std::vector<std::int64_t>& sample_shape() const noexcept override { return whole_.sample_shape(); }
  int classes() const noexcept override { return 3; }
  void fill(std::span<const std::int64_t> indices, std::span<float> inputs,
            std::span<std::int32_t> labels) const override {
    if (std::ranges::find(indices, 9) != indices.end()) throw DataError("sample 9 is torn");
    whole_.fill(indices, inputs, labels);
  }
  Digest digest() const override { return {}; }

 private:
  test::SmallDataset whole_{10};
};

}  // namespace

TEST_CASE("an evaluation has the same bits on any number of ranks, and is that of all samples") {
  const test::SmallDataset dataset(53);
  Subject serial;
  const auto expected = evaluate(Communicator::self(), serial.model, *serial.kernels, dataset, 4);
  CHECK(expected.samples == 53);

  // Every sample by itself.
  Workspace workspace = serial.model.workspace(*serial.kernels, 1);
  double loss = 0;
  std::int64_t correct = 0;
  for (std::int64_t i = 0; i < 53; ++i) {
    std::vector<float> inputs(6);
    std::vector<std::int32_t> labels(1);
    dataset.fill(std::span(&i, 1), inputs, labels);
    float sample_loss = 0;
    std::int64_t right = 0;
    serial.model.evaluate(workspace, inputs, std::span<const std::int32_t>(labels), sample_loss, right);
    loss += sample_loss;
    correct += right;
  }
  CHECK(expected.loss == doctest::Approx(loss / 53).epsilon(1e-6));
  CHECK(expected.accuracy == static_cast<double>(correct) / 53);

  for (int ranks = 1; ranks <= 7; ++ranks) {
    int same = 0;
    SimulatedWorld{ranks, 0, 4}.run([&](const Communicator& world) {
      Subject subject;
      const auto result = evaluate(world, subject.model, *subject.kernels, dataset, 4);
      same += std::memcmp(&result.loss, &expected.loss, sizeof result.loss) == 0 &&
              result.accuracy == expected.accuracy && result.samples == 53;
    });
    CHECK(same == ranks);
  }
}

namespace {

/// One value for each sample of another dataset.
class Values final : public Dataset {
 public:
  std::int64_t size() const noexcept override { return samples_.size(); }
  const std::vector<std::int64_t>& sample_shape() const noexcept override { return samples_.sample_shape(); }
  const std::vector<std::int64_t>& target_shape() const noexcept override { return shape_; }
  int classes() const noexcept override { return 0; }
  std::int64_t labels_per_sample() const noexcept override { return 0; }
  void fill(std::span<const std::int64_t> indices, std::span<float> inputs,
            std::span<std::int32_t>) const override {
    std::vector<std::int32_t> labels(indices.size());
    samples_.fill(indices, inputs, labels);
  }
  void fill_targets(std::span<const std::int64_t> indices, std::span<float> targets) const override {
    for (std::size_t i = 0; i < targets.size(); ++i) targets[i] = static_cast<float>(indices[i / 3]) + 0.5F;
  }
  Digest digest() const override { return {}; }

 private:
  test::SmallDataset samples_{29};
  std::vector<std::int64_t> shape_ = {3};
};

}  // namespace

TEST_CASE("values are judged by RMSE and R squared, labels by the largest few; the same on any ranks") {
  const Values dataset;
  std::optional<RegressionSums> first;
  for (const int ranks : {1, 3}) {
    SimulatedWorld{ranks}.run([&](const Communicator& world) {
      State state;
      Sequential model = test::small_model(7);
      model.set_loss(std::make_unique<MeanSquaredError>());
      model.declare(state);
      PlainAllocator allocator;
      state.freeze(allocator);
      model.initialize(state, 3);
      const auto kernels = make_kernels();
      const Evaluation result = evaluate(world, model, *kernels, dataset, 4);
      REQUIRE(result.values);
      CHECK(result.values->count == 29 * 3);
      CHECK(result.loss == doctest::Approx(result.values->rmse() * result.values->rmse()).epsilon(1e-6));
      CHECK(result.values->r_squared() < 1);
      CHECK(result.values->targets == doctest::Approx(3 * (28.0 * 29 / 2 + 29 * 0.5)));
      if (!first) first = result.values;
      CHECK(result.values->squared_errors == first->squared_errors);
    });
  }
  Subject subject;
  const Evaluation labels =
      evaluate(Communicator::self(), subject.model, *subject.kernels, test::SmallDataset(53), 4);
  CHECK(!labels.values);
  CHECK(labels.top_k_accuracy == 1);  // of three classes
  CHECK(labels.accuracy < 1);
}

TEST_CASE("what fails on one rank is thrown on all, and what makes no sense is refused") {
  int heard = 0;
  SimulatedWorld{4}.run([&](const Communicator& world) {
    Subject subject;
    const TornDataset dataset;
    try {
      evaluate(world, subject.model, *subject.kernels, dataset, 2);
    } catch (const DataError& error) {
      heard += std::string(error.what()).find("sample 9 is torn") != std::string::npos;
    }
  });
  CHECK(heard == 4);
  Subject subject;
  const test::SmallDataset dataset(5);
  const test::SmallDataset empty(0);
  const auto self = Communicator::self();
  CHECK_THROWS_AS(evaluate(self, subject.model, *subject.kernels, dataset, 0), UsageError);
  CHECK_THROWS_AS(evaluate(self, subject.model, *subject.kernels, empty, 4), DataError);
}

}  // namespace lockstep
