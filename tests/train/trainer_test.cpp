#include <cmath>
#include <string>

#include <doctest/doctest.h>

#include <lockstep/hooks/nan_tensor.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/mpi/simulated_world.hpp>
#include <lockstep/nn/batch_norm.hpp>
#include <lockstep/session/monitored_training_session.hpp>
#include <lockstep/train/trainer.hpp>

#include "train_support.hpp"

namespace lockstep {
namespace {

constexpr std::int64_t kSamples = 70;
constexpr std::int64_t kSteps = 5;
constexpr std::uint64_t kSeed = 3;

/// Of parameters by a node, and of optimizer slots over all ranks.
enum class Sharing : std::uint8_t { none, parameters, slots };
constexpr Sharing kSharings[] = {Sharing::none, Sharing::parameters, Sharing::slots};

struct Case {
  KernelChoice kernels = KernelChoice::automatic;
  BatchPlan batch = {24, 2};
  std::int64_t hidden = 9;
  int prefetch = 1;
  bool threads = false;
  bool shared = false;
  bool sharded = false;
  std::size_t bucket_bytes = 0;
  int ranks_per_node = 0;
  std::string optimizer = "momentum";
  UpdateOptions update = {};
  int compute_threads = 1;
  bool batch_norm = false;
  int torn_on = -1;  ///< the rank whose third step throws between the sum and the update
};

Sequential model_of(const Case& c) {
  if (!c.batch_norm) return test::small_model(c.hidden);
  Sequential model({6});
  model.add(Dense{c.hidden}).add(BatchNorm{BatchNorm::Then::relu}).add(Dense{3}).add(BatchNorm{});
  return model;
}

std::unique_ptr<Optimizer> optimizer_called(const std::string& name) {
  if (name == "lars") return std::make_unique<Lars>(0.9F, 0.1F);
  if (name == "lamb") return std::make_unique<Lamb>();
  if (name == "adam") return std::make_unique<Adam>();
  return std::make_unique<Momentum>(0.9F);
}

struct Result {
  std::vector<float> parameters;
  std::vector<float> buffers = {};
  std::vector<double> losses;
  friend bool operator==(const Result&, const Result&) = default;
};

/// Hands everything on, and notes which gradients were told to be ready, for each micro-batch.
class ListeningContext : public StepContext {
 public:
  explicit ListeningContext(StepContext& real) : real_(real) {}
  std::vector<std::vector<std::size_t>> told;

  std::int64_t number() const override { return real_.number(); }
  State& state() override { return real_.state(); }
  int rank() const override { return real_.rank(); }
  int ranks() const override { return real_.ranks(); }
  const Feeds& feeds() const override { return real_.feeds(); }
  StepTrace& trace() override { return real_.trace(); }
  std::span<const float> reduce(std::span<const float> gradients, StepValues& local) override {
    return real_.reduce(gradients, local);
  }
  void contribute_nothing() override { real_.contribute_nothing(); }
  int contributing_ranks() const override { return real_.contributing_ranks(); }
  std::int64_t contributing_micro_batches() const override { return real_.contributing_micro_batches(); }
  MicroBatchRange micro_batches() const override { return real_.micro_batches(); }
  std::int64_t micro_batches_in_step() const override { return real_.micro_batches_in_step(); }
  std::span<float> begin_micro_batch() override {
    told.emplace_back();
    return real_.begin_micro_batch();
  }
  void gradient_ready(std::size_t offset) override {
    told.back().push_back(offset);
    real_.gradient_ready(offset);
  }
  void end_micro_batch() override { real_.end_micro_batch(); }
  void say_not_finite() override { real_.say_not_finite(); }
  void reduce_micro_batches() override { real_.reduce_micro_batches(); }
  ElementRange slice() const override { return real_.slice(); }
  ElementRange buffer_slice() const override { return real_.buffer_slice(); }
  bool shares_parameters() const override { return real_.shares_parameters(); }
  std::span<const float> sum() const override { return real_.sum(); }
  void finish() override { real_.finish(); }
  bool anyone_finished() const override { return real_.anyone_finished(); }

 private:
  StepContext& real_;
};

/// Throws when the sum is there, before any update.
class TornContext final : public ListeningContext {
 public:
  using ListeningContext::ListeningContext;
  void reduce_micro_batches() override {
    ListeningContext::reduce_micro_batches();
    throw DataError("torn");
  }
};

/// What a rank has after some steps of a session.
Result trained(const Communicator& world, const Case& c) {
  Sequential model = model_of(c);
  State state;
  model.declare(state);
  const auto optimizer = optimizer_called(c.optimizer);
  optimizer->declare(state);
  const WarmUp schedule(3, std::make_unique<ConstantRate>(0.1F));
  const auto kernels = make_kernels(c.kernels);
  MonitoredTrainingSessionOptions options;
  options.scaffold.init_fn = [&](State& fresh) { model.initialize(fresh, kSeed); };
  options.hooks = {std::make_shared<StopAtStepHook>(kSteps)};
  options.config.micro_batches = c.batch.micro_batches();
  options.config.share_parameters = c.shared;
  options.config.shard_optimizer = c.sharded;
  options.config.bucket_bytes = c.bucket_bytes;
  options.config.ranks_per_node = c.ranks_per_node;
  options.config.clock = std::make_shared<FakeClock>();
  const std::shared_ptr<Executor> executor =
      c.threads ? std::shared_ptr<Executor>(std::make_shared<ThreadExecutor>())
                : std::make_shared<InlineExecutor>();
  MonitoredTrainingSession session(world, state, options);
  Trainer trainer({.model = model,
                   .optimizer = *optimizer,
                   .schedule = schedule,
                   .kernels = *kernels,
                   .dataset = std::make_shared<test::SmallDataset>(kSamples),
                   .batch = c.batch,
                   .seed = kSeed,
                   .state = state,
                   .executor = *executor,
                   .prefetch = c.prefetch,
                   .update = c.update,
                   .threads = c.compute_threads},
                  session);
  Result result;
  session.train([&](StepContext& step) {
    TornContext torn(step);
    const bool tears = world.rank() == c.torn_on && step.number() == 2;
    const StepValues values = trainer.step(tears ? torn : step);
    result.losses.push_back(*values.find("loss"));
    CHECK(values.find("learning_rate") == schedule.learning_rate(step.number()));
    return values;
  });
  for (const Tensor& tensor : state.parameter_tensors()) {
    result.parameters.insert(result.parameters.end(), tensor.values().begin(), tensor.values().end());
  }
  result.buffers.assign(state.buffers().begin(), state.buffers().end());
  // Padding stays zero, or digests and norms would see it.
  float all = 0;
  float named = 0;
  for (const float value : state.parameters()) all += std::abs(value);
  for (const float value : result.parameters) named += std::abs(value);
  CHECK(all == doctest::Approx(named));
  world.barrier("all to have looked");
  return result;
}

/// The same by the definition: all micro-batches one after the other, summed level by level.
Result computed(const Case& c) {
  Sequential model = test::small_model(c.hidden);
  State state;
  model.declare(state);
  const Momentum optimizer(0.9F);
  optimizer.declare(state);
  PlainAllocator allocator;
  state.freeze(allocator);
  model.initialize(state, kSeed);
  const auto kernels = make_kernels(c.kernels);
  const test::SmallDataset dataset(kSamples);
  Sampler sampler(kSeed, kSamples, c.batch.global_batch);
  Workspace workspace = model.workspace(*kernels, c.batch.micro_batch);
  const auto slots = optimizer.slots(state);
  const WarmUp schedule(3, std::make_unique<ConstantRate>(0.1F));
  Result result;
  const std::size_t elements = state.parameter_elements();
  const auto samples = static_cast<std::size_t>(c.batch.micro_batch);
  for (std::int64_t t = 0; t < kSteps; ++t) {
    std::vector<std::vector<float>> level;
    for (std::int64_t m = 0; m < c.batch.micro_batches(); ++m) {
      std::vector<std::int64_t> indices(samples);
      sampler.indices(t, m * c.batch.micro_batch, indices);
      std::vector<float> inputs(samples * 6);
      std::vector<std::int32_t> labels(samples);
      dataset.fill(indices, inputs, labels);
      Arena gradients = allocator.allocate(elements + 16);
      model.forward_backward(workspace, inputs, std::span<const std::int32_t>(labels),
                             gradients.values().first(elements),
                             1.0F / static_cast<float>(c.batch.global_batch), gradients.values()[elements]);
      level.emplace_back(gradients.values().begin(), gradients.values().end());
    }
    while (level.size() > 1) {
      std::vector<std::vector<float>> above;
      for (std::size_t i = 0; i + 1 < level.size(); i += 2) {
        above.push_back(level[i]);
        for (std::size_t e = 0; e < above.back().size(); ++e) above.back()[e] += level[i + 1][e];
      }
      if (level.size() % 2 == 1) above.push_back(level.back());
      level = std::move(above);
    }
    result.losses.push_back(level[0][elements]);
    optimizer.apply({0, elements}, state.parameters(), std::span(level[0]).first(elements), slots,
                    {.learning_rate = schedule.learning_rate(t), .step = t});
  }
  for (const Tensor& tensor : state.parameter_tensors()) {
    result.parameters.insert(result.parameters.end(), tensor.values().begin(), tensor.values().end());
  }
  return result;
}

}  // namespace

TEST_CASE("the same bits as by the definition, on 1 to 5 ranks, however they sit, share and fetch") {
  for (const KernelChoice kernels : built_kernels()) {
    // A model within one slice and one of several; 12 micro-batches and a prime number of them.
    for (const std::int64_t hidden : {9, 1300}) {
      for (const BatchPlan batch : {BatchPlan{24, 2}, BatchPlan{21, 3}}) {
        const Result expected = computed({.kernels = kernels, .batch = batch, .hidden = hidden});
        CHECK(expected.losses.front() > 0.5);
        CHECK(expected.losses.front() != expected.losses.back());
        for (int ranks = 1; ranks <= 5; ++ranks) {
          for (const Sharing sharing : kSharings) {
            for (const int per_node : {0, 1, 2}) {
              const int prefetch = (ranks + per_node) % 3;
              CAPTURE(ranks);
              CAPTURE(sharing);
              CAPTURE(per_node);
              CAPTURE(hidden);
              int same = 0;
              SimulatedWorld{ranks, 0, static_cast<std::uint64_t>(7 * ranks + per_node)}.run(
                  [&](const Communicator& world) {
                    same += trained(world, {.kernels = kernels,
                                            .batch = batch,
                                            .hidden = hidden,
                                            .prefetch = prefetch,
                                            .threads = false,
                                            .shared = sharing != Sharing::none,
                                            .sharded = sharing == Sharing::slots,
                                            .bucket_bytes = ranks % 2 == 0 ? 0U : 16384U,
                                            .ranks_per_node = per_node}) == expected;
                  });
              CHECK(same == ranks);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("running statistics have the same bits, however ranks sit and share") {
  const auto run = [](int ranks, Case c) {
    c.batch_norm = true;
    c.batch = {24, 4};
    c.hidden = 700;
    Result result;
    int same = 0;
    SimulatedWorld{ranks, 0, static_cast<std::uint64_t>(ranks)}.run([&](const Communicator& world) {
      const Result mine = trained(world, c);
      if (world.is_chief()) result = mine;
      if (mine == result) ++same;
    });
    CHECK(same == ranks);
    return result;
  };
  const Result expected = run(1, {});
  CHECK(std::ranges::count(expected.buffers, 0.0F) < 40);  // padding, of 1,440
  for (int ranks = 1; ranks <= 5; ++ranks) {
    for (const Sharing sharing : kSharings) {
      for (const int per_node : {0, 1, 2}) {
        CAPTURE(ranks);
        CAPTURE(sharing);
        CAPTURE(per_node);
        CHECK(run(ranks, {.shared = sharing != Sharing::none,
                          .sharded = sharing == Sharing::slots,
                          .bucket_bytes = 16384,
                          .ranks_per_node = per_node}) == expected);
      }
    }
  }
}

TEST_CASE("in the last micro-batch each layer's gradient is told to be ready, the last layer's first") {
  Sequential model = test::small_model(9);
  State state;
  model.declare(state);
  const Sgd optimizer;
  const ConstantRate schedule(0.1F);
  const auto kernels = make_kernels();
  InlineExecutor executor;
  MonitoredTrainingSessionOptions options;
  options.config.micro_batches = 3;
  MonitoredTrainingSession session(Communicator::self(), state, options);
  Trainer trainer({.model = model,
                   .optimizer = optimizer,
                   .schedule = schedule,
                   .kernels = *kernels,
                   .dataset = std::make_shared<test::SmallDataset>(kSamples),
                   .batch = {6, 2},
                   .seed = kSeed,
                   .state = state,
                   .executor = executor},
                  session);
  std::vector<std::vector<std::size_t>> told;
  session.run([&](StepContext& step) {
    ListeningContext listening(step);
    const StepValues values = trainer.step(listening);
    told = listening.told;
    return values;
  });
  const std::size_t second_layer = state.parameter_tensors()[2].offset();
  CHECK(told == std::vector<std::vector<std::size_t>>{{}, {}, {second_layer, 0}});
}

TEST_CASE("batches made ahead on a thread change nothing, and ranks without work idle") {
  Case c;
  c.batch = {4, 2};
  const Result expected = computed(c);
  for (const int prefetch : {0, 1, 3}) {
    c.prefetch = prefetch;
    c.threads = true;
    int same = 0;
    SimulatedWorld{5}.run([&](const Communicator& world) { same += trained(world, c) == expected; });
    CHECK(same == 5);
  }
}

TEST_CASE("threads of a rank work on different micro-batches and change no bits") {
  for (const KernelChoice kernels : built_kernels()) {
    Case c{.kernels = kernels, .batch = {21, 3}};
    const Result expected = computed(c);
    c.threads = true;
    for (const int threads : {2, 3, 4, 9}) {
      for (const int ranks : {1, 2, 3}) {
        for (const bool shared : {false, true}) {
          CAPTURE(threads);
          CAPTURE(ranks);
          c.compute_threads = threads;
          c.shared = shared;
          int same = 0;
          SimulatedWorld{ranks}.run(
              [&](const Communicator& world) { same += trained(world, c) == expected; });
          CHECK(same == ranks);
        }
      }
    }
  }
  CHECK_THROWS_AS(trained(Communicator::self(), Case{.compute_threads = 0}), UsageError);
}

TEST_CASE("clipping, weight decay and layerwise rates have the same bits on any ranks, nodes and sharing") {
  for (const char* const optimizer : {"momentum", "adam", "lars", "lamb"}) {
    for (const double clip_norm : {0.0, 0.05}) {
      Case c;
      c.hidden = 700;  // tensors of several blocks
      c.optimizer = optimizer;
      c.update = {.clip_norm = clip_norm, .clip_value = 0.02, .weight_decay = 0.1F};
      CAPTURE(optimizer);
      CAPTURE(clip_norm);
      const Result expected = trained(Communicator::self(), c);
      Case plain = c;
      plain.update = {};
      CHECK(!(trained(Communicator::self(), plain) == expected));
      for (const int ranks : {1, 2, 3, 5}) {
        for (const int per_node : {0, 1, 2}) {
          for (const Sharing sharing : kSharings) {
            CAPTURE(ranks);
            CAPTURE(per_node);
            CAPTURE(sharing);
            c.shared = sharing != Sharing::none;
            c.sharded = sharing == Sharing::slots;
            c.ranks_per_node = per_node;
            int same = 0;
            SimulatedWorld{ranks, 0, 9}.run(
                [&](const Communicator& world) { same += trained(world, c) == expected; });
            CHECK(same == ranks);
          }
        }
      }
    }
  }
}

TEST_CASE("a rank that fails between the sum and an update with norms leaves nobody waiting") {
  for (const char* const optimizer : {"momentum", "lamb"}) {
    for (const int ranks : {2, 3, 4}) {
      for (const int per_node : {0, 1, 2}) {
        for (const Sharing sharing : kSharings) {
          for (int who = 0; who < ranks; ++who) {
            // The first rank of a node alone knows the node's part of a norm over shards.
            const bool first_of_shard = sharing == Sharing::slots && per_node > 0 && who % per_node == 0;
            if (first_of_shard && per_node < ranks) continue;
            CAPTURE(optimizer);
            CAPTURE(ranks);
            CAPTURE(per_node);
            CAPTURE(sharing);
            CAPTURE(who);
            Case c;
            c.hidden = 700;
            c.optimizer = optimizer;
            c.update = {.clip_norm = 0.05};
            c.shared = sharing != Sharing::none;
            c.sharded = sharing == Sharing::slots;
            c.ranks_per_node = per_node;
            c.torn_on = who;
            int told = 0;
            SimulatedWorld{ranks, 0, 9}.run([&](const Communicator& world) {
              try {
                trained(world, c);
              } catch (const DataError& error) {
                told += std::string_view(error.what()).find("torn") != std::string_view::npos;
              }
            });
            CHECK(told == ranks);
          }
        }
      }
    }
  }
}

TEST_CASE("a clipped step is that of the scaled gradient, and the norm is told") {
  // SGD from the same start: the first update with clipping is a known part of the one without.
  const auto first_update = [](double clip_norm, double& norm) {
    Sequential model = test::small_model(9);
    State state;
    model.declare(state);
    const Sgd optimizer;
    const ConstantRate schedule(0.1F);
    const auto kernels = make_kernels();
    InlineExecutor executor;
    MonitoredTrainingSessionOptions options;
    options.scaffold.init_fn = [&](State& fresh) { model.initialize(fresh, kSeed); };
    MonitoredTrainingSession session(Communicator::self(), state, options);
    const std::vector<float> before(state.parameters().begin(), state.parameters().end());
    Trainer trainer({.model = model,
                     .optimizer = optimizer,
                     .schedule = schedule,
                     .kernels = *kernels,
                     .dataset = std::make_shared<test::SmallDataset>(kSamples),
                     .batch = {8, 8},
                     .seed = kSeed,
                     .state = state,
                     .executor = executor,
                     .update = {.clip_norm = clip_norm}},
                    session);
    session.run([&](StepContext& step) {
      const StepValues values = trainer.step(step);
      norm = values.find("gradient_norm").value_or(0);
      return values;
    });
    std::vector<double> change;
    for (std::size_t i = 0; i < before.size(); ++i) {
      change.push_back(static_cast<double>(state.parameters()[i]) - static_cast<double>(before[i]));
    }
    return change;
  };
  double unknown = 1, norm = 0, same_norm = 0;
  const auto whole = first_update(0, unknown);
  CHECK(unknown == 0);
  const auto loose = first_update(1e6, norm);
  CHECK(loose == whole);
  double squares = 0;
  for (const double x : whole) squares += x * x;
  CHECK(norm == doctest::Approx(std::sqrt(squares) / 0.1).epsilon(1e-3));
  const auto clipped = first_update(norm / 4, same_norm);
  CHECK(same_norm == norm);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    CHECK(clipped[i] == doctest::Approx(whole[i] / 4).epsilon(1e-2).scale(1e-3));
  }
}

TEST_CASE("a session that sums another number of micro-batches is refused on all ranks") {
  int refused = 0;
  SimulatedWorld{2}.run([&](const Communicator& world) {
    Sequential model = test::small_model(4);
    State state;
    model.declare(state);
    const Sgd optimizer;
    const ConstantRate schedule(0.1F);
    const auto kernels = make_kernels();
    InlineExecutor executor;
    MonitoredTrainingSession session(world, state);  // one micro-batch a rank
    Trainer trainer({.model = model,
                     .optimizer = optimizer,
                     .schedule = schedule,
                     .kernels = *kernels,
                     .dataset = std::make_shared<test::SmallDataset>(kSamples),
                     .batch = {8, 1},
                     .seed = kSeed,
                     .state = state,
                     .executor = executor},
                    session);
    try {
      session.run([&](StepContext& step) { return trainer.step(step); });
    } catch (const UsageError& error) {
      refused +=
          std::string(error.what()).find("sums 2 micro-batches a step, the batch of 8 samples has 8") !=
          std::string::npos;
    }
  });
  CHECK(refused == 2);
}

TEST_CASE(
    "a batch plan takes the largest divisor up to 32, and names the nearest for one that does not fit") {
  CHECK(batch_plan(240, 0).micro_batch == 30);
  CHECK(batch_plan(240, 0).micro_batches() == 8);
  CHECK(batch_plan(128, 0).micro_batch == 32);
  CHECK(batch_plan(20, 0).micro_batch == 20);
  CHECK(batch_plan(1, 0).micro_batch == 1);
  CHECK(batch_plan(37, 0).micro_batch == 1);
  CHECK(batch_plan(74, 0).micro_batch == 2);
  CHECK(batch_plan(240, 240).micro_batches() == 1);
  CHECK_THROWS_AS(batch_plan(0, 1), UsageError);
  CHECK_THROWS_AS(batch_plan(-8, 1), UsageError);
  CHECK_THROWS_AS(batch_plan(8, -1), UsageError);
  const auto text = [](std::int64_t global, std::int64_t micro) {
    try {
      batch_plan(global, micro);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(text(240, 32).ends_with("choose micro_batch 30 or 40"));
  CHECK(text(12, 50).ends_with("choose micro_batch 12"));
  CHECK(text(17, 2).ends_with("choose micro_batch 1 or 17"));
  CHECK(text(2'000'000'011, 1'000'000'000).ends_with("choose micro_batch 1 or 2000000011"));  // at once
}

}  // namespace lockstep
