#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/nn/attention.hpp>
#include <lockstep/nn/avg_pool2d.hpp>
#include <lockstep/nn/batch_norm.hpp>
#include <lockstep/nn/concatenate.hpp>
#include <lockstep/nn/conv2d.hpp>
#include <lockstep/nn/conv_transpose2d.hpp>
#include <lockstep/nn/dropout.hpp>
#include <lockstep/nn/embedding.hpp>
#include <lockstep/nn/gelu.hpp>
#include <lockstep/nn/global_avg_pool.hpp>
#include <lockstep/nn/gradient_check.hpp>
#include <lockstep/nn/layer_norm.hpp>
#include <lockstep/nn/max_pool2d.hpp>
#include <lockstep/nn/optimizer.hpp>
#include <lockstep/nn/relu.hpp>
#include <lockstep/nn/residual.hpp>
#include <lockstep/nn/sequential.hpp>
#include <lockstep/nn/sigmoid.hpp>
#include <lockstep/nn/silu.hpp>
#include <lockstep/nn/tanh.hpp>

#include "support.hpp"

// Under the address sanitizer memory is its own business, and only `new` is counted.
#if defined(__SANITIZE_ADDRESS__)
#define LOCKSTEP_COUNTS_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LOCKSTEP_COUNTS_MALLOC 0
#endif
#endif
#ifndef LOCKSTEP_COUNTS_MALLOC
#define LOCKSTEP_COUNTS_MALLOC 1
#endif

namespace {

std::atomic<long> allocations{0};
std::atomic<long> alive{0};  // pieces of memory

void* taken(void* memory) {
  ++allocations;
  if (memory != nullptr) ++alive;
  return memory;
}

}  // namespace

#if LOCKSTEP_COUNTS_MALLOC
// Counts every allocation of the program and of the libraries in it, whatever way it takes: these stand
// before those of the C library, whose own names for them they call.
extern "C" {
void* __libc_malloc(std::size_t) noexcept;
void* __libc_calloc(std::size_t, std::size_t) noexcept;
void* __libc_realloc(void*, std::size_t) noexcept;
void* __libc_memalign(std::size_t, std::size_t) noexcept;
void __libc_free(void*) noexcept;

void* malloc(std::size_t size) noexcept {
  return taken(__libc_malloc(size));
}
void* calloc(std::size_t number, std::size_t size) noexcept {
  return taken(__libc_calloc(number, size));
}
void* memalign(std::size_t alignment, std::size_t size) noexcept {
  return taken(__libc_memalign(alignment, size));
}
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return memalign(alignment, size);
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t size) noexcept {
  *memory = memalign(alignment, size);
  return *memory == nullptr ? ENOMEM : 0;
}
void* realloc(void* memory, std::size_t size) noexcept {
  if (memory != nullptr) --alive;
  return taken(__libc_realloc(memory, size));
}
void free(void* memory) noexcept {
  if (memory != nullptr) --alive;
  __libc_free(memory);
}
}
#else
// Not inlined: gcc would take the halves of a pair for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (void* memory = std::malloc(size)) return taken(memory);
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  if (memory != nullptr) --alive;
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  if (memory != nullptr) --alive;
  std::free(memory);
}
#endif

namespace lockstep {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::span<const std::int32_t> view(const std::vector<std::int32_t>& labels) {
  return labels;
}

struct Result {
  float loss = 0;
  std::vector<float> gradients;
};

Result one_pass(test::Trained& trained, const Kernels& kernels, std::int64_t samples, std::size_t shift = 0) {
  const auto inputs =
      test::normal_values(static_cast<std::size_t>(samples * element_count(trained.model.input_shape())), 20);
  const auto labels = test::random_labels(static_cast<std::size_t>(samples), 10, 21);
  Workspace workspace = trained.model.workspace(kernels, samples);
  const test::Shifted moved(inputs, shift);
  const test::Shifted gradients(std::vector<float>(trained.state.parameter_elements()), shift);
  Result result;
  trained.model.forward_backward(workspace, moved.values(), view(labels), gradients.values(), 0.25F,
                                 result.loss);
  result.gradients.assign(gradients.values().begin(), gradients.values().end());
  return result;
}

TEST_CASE("the gradients of a whole model agree with differences of its loss") {
  for (const auto& kernels : test::all_kernels()) {
    CAPTURE(kernels->name());
    test::Trained trained({3, 4}, {9, 7}, 10);
    trained.ready();
    const auto inputs = test::normal_values(5 * 12, 30);
    const auto labels = test::random_labels(5, 10, 31);
    const GradientReport report =
        check_gradients(trained.model, trained.state, *kernels, inputs, view(labels), {.step = 1.0 / 32});
    INFO(report.where);
    CHECK(report.worst < 1e-2);
    CHECK(report.checked > 200);
    CHECK(report.skipped * 4 < report.checked);
  }
}

TEST_CASE("loss and gradients have the same bits twice, from another workspace, and at other addresses") {
  for (const auto& kernels : test::all_kernels_and_precisions()) {
    CAPTURE(kernels->name());
    test::Trained trained({28, 28}, {65, 32}, 10);
    trained.ready();
    const Result first = one_pass(trained, *kernels, 13);
    for (const std::size_t shift : {0, 1, 4, 11}) {
      const Result again = one_pass(trained, *kernels, 13, shift);
      CHECK(again.loss == first.loss);
      CHECK(test::same_bits(again.gradients, first.gradients));
    }
  }
}

TEST_CASE("threads with a workspace each share a model and get the same bits at the same time") {
  for (const auto& kernels : test::all_kernels_and_precisions()) {
    CAPTURE(kernels->name());
    test::Trained trained({100}, {65, 32}, 10);
    trained.ready();
    const Result expected = one_pass(trained, *kernels, 13);
    ThreadExecutor executor;
    std::vector<Result> results(3);
    std::vector<std::unique_ptr<Worker>> workers;
    for (Result& result : results) {
      workers.push_back(executor.start("pass"));
      workers.back()->post([&] {
        for (int i = 0; i < 20; ++i) result = one_pass(trained, *kernels, 13);
      });
    }
    for (const auto& worker : workers) worker->wait();
    for (const Result& result : results) {
      CHECK(result.loss == expected.loss);
      CHECK(test::same_bits(result.gradients, expected.gradients));
    }
  }
}

TEST_CASE("the libraries agree on loss and gradients within rounding") {
  test::Trained trained({50}, {40, 30}, 10);
  trained.ready();
  const auto all = test::all_kernels();
  const Result expected = one_pass(trained, *all.front(), 32);
  for (const auto& kernels : all) {
    CAPTURE(kernels->name());
    const Result result = one_pass(trained, *kernels, 32);
    CHECK(result.loss == doctest::Approx(expected.loss).epsilon(1e-5));
    for (std::size_t i = 0; i < result.gradients.size(); ++i) {
      if (std::abs(result.gradients[i] - expected.gradients[i]) > 1e-4F) FAIL_CHECK("element " << i);
    }
  }
}

TEST_CASE("a workspace made for more samples gives the same bits for fewer") {
  const auto kernels = make_kernels();
  test::Trained trained({20}, {16}, 10);
  trained.ready();
  const auto inputs = test::normal_values(5 * 20, 40);
  const auto labels = test::random_labels(5, 10, 41);
  std::vector<Result> results;
  for (const std::int64_t micro_batch : {5, 64}) {
    Workspace workspace = trained.model.workspace(*kernels, micro_batch);
    Arena gradients = trained.gradients();
    Result result;
    trained.model.forward_backward(workspace, inputs, view(labels), gradients.values(), 1.0F, result.loss);
    result.gradients.assign(gradients.values().begin(), gradients.values().end());
    results.push_back(result);
  }
  CHECK(results[0].loss == results[1].loss);
  CHECK(test::same_bits(results[0].gradients, results[1].gradients));
}

TEST_CASE("gradients are written, not added, and padding stays zero") {
  const auto kernels = make_kernels();
  test::Trained trained({5}, {3}, 10);
  trained.ready();
  const auto inputs = test::normal_values(2 * 5, 50);
  const auto labels = test::random_labels(2, 10, 51);
  Workspace workspace = trained.model.workspace(*kernels, 2);
  Arena gradients = trained.gradients();
  float loss = 0;
  trained.model.forward_backward(workspace, inputs, view(labels), gradients.values(), 1.0F, loss);
  const std::vector<float> once(gradients.values().begin(), gradients.values().end());
  trained.model.forward_backward(workspace, inputs, view(labels), gradients.values(), 1.0F, loss);
  CHECK(test::same_bits(once, gradients.values()));
  std::vector<bool> owned(once.size());
  for (const Tensor& tensor : trained.state.parameter_tensors()) {
    for (std::size_t i = 0; i < tensor.size(); ++i) owned[tensor.offset() + i] = true;
  }
  for (std::size_t i = 0; i < once.size(); ++i) {
    if (!owned[i]) CHECK(once[i] == 0.0F);
  }
}

/// What steps have allocated. The first may.
class Steps {
 public:
  void end() {
    taken_.at(steps_) = allocations;
    alive_.at(steps_) = alive;
    ++steps_;
  }

  /// Every step after the first took so many pieces of memory, and none kept any.
  void check(long each) const {
    for (std::size_t i = 1; i < steps_; ++i) {
      CHECK(taken_.at(i) - taken_.at(i - 1) == each);
      CHECK(alive_.at(i) == alive_.front());
    }
  }

  /// The same number in each step, which is not ours to say.
  void check_same() const { check(taken_.at(1) - taken_.at(0)); }

 private:
  std::array<long, 8> taken_{}, alive_{};
  std::size_t steps_ = 0;
};

/// Pieces of memory that a product takes: oneDNN's in fp32 packs into a buffer of its own, for which there is
/// no way to hand it one. Only `malloc` shows it.
long takes_for_products(const Kernels& kernels) {
  const bool library_does = kernels.name() == "onednn" && kernels.precision() != Precision::bf16;
  return library_does && LOCKSTEP_COUNTS_MALLOC != 0 ? 1 : 0;
}

TEST_CASE(
    "a step allocates nothing after the first, but for the packing buffer of oneDNN's products in fp32") {
  for (const auto& kernels : test::all_kernels_and_precisions()) {
    CAPTURE(kernels->name());
    test::Trained trained({784}, {512, 100}, 10);
    const Momentum optimizer;
    optimizer.declare(trained.state);
    trained.ready();
    const auto slots = optimizer.slots(trained.state);
    Workspace workspace = trained.model.workspace(*kernels, 32);
    Arena gradients = trained.gradients();
    const auto inputs = test::normal_values(32 * 784, 60);
    const auto labels = test::random_labels(32, 10, 61);
    std::size_t last_offset = 1;
    const Sequential::GradientReady ready = [&](std::size_t offset) { last_offset = offset; };
    Steps steps;
    for (int step = 0; step < 4; ++step) {
      float loss = 0;
      trained.model.forward_backward(workspace, inputs, view(labels), gradients.values(), 1.0F / 32, loss,
                                     ready);
      optimizer.apply({0, gradients.size()}, trained.state.parameters(), gradients.values(), slots,
                      {.learning_rate = 0.1F, .step = step});
      std::int64_t correct = 0;
      trained.model.evaluate(workspace, inputs, view(labels), loss, correct);
      steps.end();
    }
    // Forward of three layers, twice, and their gradients, of which that of the input is not wanted.
    steps.check(takes_for_products(*kernels) * (3 + 5 + 3));
    CHECK(last_offset == 0);
  }
}

/// Every kind of layer, small, in the order of a network that has them all.
Sequential network_of(const std::string& name) {
  const auto residual = [](std::int64_t channels, bool shortcut) {
    Chain main, other;
    main.add(Conv2d{channels, 3, {.stride = shortcut ? 2 : 1, .padding = 1, .bias = false}})
        .add(BatchNorm{BatchNorm::Then::relu})
        .add(Conv2d{channels, 3, {.padding = 1, .bias = false}})
        .add(BatchNorm{});
    if (shortcut) other.add(Conv2d{channels, 1, {.stride = 2, .bias = false}}).add(BatchNorm{});
    return Residual{std::move(main), std::move(other), Residual::Then::relu};
  };
  if (name == "lenet") {
    Sequential model{{16, 16}};
    model.add(Conv2d{8, 5})
        .add(MaxPool2d{2})
        .add(Relu{})
        .add(Dropout{0.25F})
        .add(Dense{16, Activation::relu});
    model.add(Dense{5});
    return model;
  }
  if (name == "resnet") {
    Sequential model{{8, 8, 3}};
    model.add(Conv2d{4, 3, {.padding = 1, .bias = false}}).add(BatchNorm{BatchNorm::Then::relu});
    model.add(residual(4, false)).add(residual(8, true)).add(GlobalAvgPool{}).add(Dense{5});
    return model;
  }
  if (name == "unet") {
    Sequential model{{8, 8, 2}};
    Chain below;
    below.add(MaxPool2d{2}).add(Conv2d{8, 3, {.padding = 1}}).add(Silu{}).add(ConvTranspose2d{4, 2, 2});
    model.add(Conv2d{4, 3, {.padding = 1}}).add(Tanh{}).add(Concatenate{std::move(below)}).add(AvgPool2d{2});
    model.add(Sigmoid{}).add(Dense{5});
    return model;
  }
  Sequential model{{12}};
  Chain attention, mlp;
  const auto dense = [](std::int64_t outputs) { return Dense{outputs, DenseOptions{.each_position = true}}; };
  attention.add(LayerNorm{}).add(dense(48)).add(CausalAttention{2}).add(dense(16));
  mlp.add(LayerNorm{}).add(dense(32)).add(Gelu{}).add(dense(16)).add(Dropout{0.1F});
  model.add(Embedding{5, 16, true}).add(Residual{std::move(attention)}).add(Residual{std::move(mlp)});
  model.add(LayerNorm{}).add(dense(5));
  return model;
}

TEST_CASE("the gradients of networks with every kind of layer agree with differences of their loss") {
  const auto kernels = make_kernels();
  for (const std::string name : {"lenet", "resnet", "unet", "gpt"}) {
    CAPTURE(name);
    State state;
    Sequential model = network_of(name);
    model.declare(state);
    PlainAllocator allocator;
    state.freeze(allocator);
    model.initialize(state, 1);
    constexpr std::int64_t kSamples = 4;
    std::vector<float> inputs =
        test::normal_values(static_cast<std::size_t>(kSamples * element_count(model.input_shape())), 62);
    if (name == "gpt") {
      for (std::size_t i = 0; i < inputs.size(); ++i) inputs[i] = static_cast<float>((i * i) % 5);
    }
    const auto positions = static_cast<std::size_t>(element_count(model.output_shape()) / 5);
    const auto labels = test::random_labels(kSamples * positions, 5, 63);
    // Small steps where sums pass the kinks of ReLU and of pools, many of them behind batch norm.
    const double step = name == "gpt" ? 1.0 / 256 : name == "resnet" ? 1.0 / 2048 : 1.0 / 1024;
    const GradientReport report =
        check_gradients(model, state, *kernels, inputs, view(labels), {.step = step});
    INFO(report.where);
    CHECK(report.worst < 2e-2);
    CHECK(report.skipped * 4 < report.checked);
  }
}

TEST_CASE("no network's step allocates after the first, but for what oneDNN takes and gives back in a call") {
  for (const auto& kernels : test::all_kernels_and_precisions()) {
    for (const std::string name : {"lenet", "resnet", "unet", "gpt"}) {
      CAPTURE(kernels->name());
      CAPTURE(name);
      State state;
      Sequential model = network_of(name);
      model.declare(state);
      PlainAllocator allocator;
      state.freeze(allocator);
      model.initialize(state, 1);
      constexpr std::int64_t kSamples = 4;
      Workspace workspace = model.workspace(*kernels, kSamples);
      const Arena gradients = allocator.allocate(state.gradient_elements());
      std::vector<float> inputs =
          test::normal_values(static_cast<std::size_t>(kSamples * element_count(model.input_shape())), 60);
      if (name == "gpt") {
        for (std::size_t i = 0; i < inputs.size(); ++i) inputs[i] = static_cast<float>(i % 5);
      }
      const auto positions = static_cast<std::size_t>(element_count(model.output_shape()) / 5);
      const auto labels = test::random_labels(kSamples * positions, 5, 61);
      const auto values = gradients.values();
      Steps steps;
      for (int step = 0; step < 4; ++step) {
        float loss = 0;
        const TrainingPass training{
            .draw = {.seed = 1, .step = step},
            .statistics = values.subspan(state.parameter_elements(), state.buffers().size())};
        model.forward_backward(workspace, inputs, view(labels), values, 0.25F, loss, {}, training);
        steps.end();
      }
      // Its convolutions take a few small objects, such as lists of their arguments.
      const bool library_does =
          kernels->name() == "onednn" && (name != "gpt" || takes_for_products(*kernels) > 0);
      if (library_does) {
        steps.check_same();
      } else {
        steps.check(0);
      }
    }
  }
}

TEST_CASE("backward reports each layer's gradient when it is complete, the last layer first") {
  const auto kernels = make_kernels();
  test::Trained trained({6}, {5, 4}, 10);
  trained.ready();
  const auto inputs = test::normal_values(3 * 6, 70);
  const auto labels = test::random_labels(3, 10, 71);
  Workspace workspace = trained.model.workspace(*kernels, 3);
  Arena expected = trained.gradients();
  float loss = 0;
  trained.model.forward_backward(workspace, inputs, view(labels), expected.values(), 1.0F, loss);
  Arena gradients = trained.gradients();
  std::vector<std::size_t> offsets;
  trained.model.forward_backward(
      workspace, inputs, view(labels), gradients.values(), 1.0F, loss, [&](std::size_t offset) {
        offsets.push_back(offset);
        CHECK(test::same_bits(gradients.values().subspan(offset), expected.values().subspan(offset)));
      });
  const auto& tensors = trained.state.parameter_tensors();
  CHECK(offsets == std::vector<std::size_t>{tensors[4].offset(), tensors[2].offset(), tensors[0].offset()});
}

TEST_CASE("the scaled losses of micro-batches add up to the mean over the batch") {
  const auto kernels = make_kernels();
  test::Trained trained({6}, {5}, 10);
  trained.ready();
  const auto inputs = test::normal_values(8 * 6, 80);
  const auto labels = test::random_labels(8, 10, 81);
  Workspace workspace = trained.model.workspace(*kernels, 8);
  Arena gradients = trained.gradients();
  float sum = 0;
  for (std::size_t part = 0; part < 4; ++part) {
    float loss = 0;
    trained.model.forward_backward(workspace, std::span(inputs).subspan(part * 12, 12),
                                   view(labels).subspan(part * 2, 2), gradients.values(), 1.0F / 8, loss);
    sum += loss;
  }
  float loss_sum = 0;
  std::int64_t correct = 0;
  trained.model.evaluate(workspace, inputs, view(labels), loss_sum, correct);
  CHECK(sum == doctest::Approx(loss_sum / 8));
}

TEST_CASE("one NaN among the inputs makes the loss NaN") {
  for (const auto& kernels : test::all_kernels()) {
    CAPTURE(kernels->name());
    test::Trained trained({30}, {17, 17}, 10);
    trained.ready();
    Workspace workspace = trained.model.workspace(*kernels, 4);
    Arena gradients = trained.gradients();
    const auto labels = test::random_labels(4, 10, 91);
    for (const std::size_t at : {0, 31, 119}) {
      auto inputs = test::normal_values(4 * 30, 90);
      inputs[at] = kNan;
      float loss = 0;
      trained.model.forward_backward(workspace, inputs, view(labels), gradients.values(), 0.25F, loss);
      CHECK(std::isnan(loss));
    }
  }
}

TEST_CASE("training a small problem lowers its loss to near zero and gets every sample right") {
  for (const auto& kernels : test::all_kernels()) {
    CAPTURE(kernels->name());
    test::Trained trained({8}, {32}, 10);
    const Adam optimizer;
    optimizer.declare(trained.state);
    trained.ready();
    const auto slots = optimizer.slots(trained.state);
    const auto inputs = test::normal_values(16 * 8, 100);
    const auto labels = test::random_labels(16, 10, 101);
    Workspace workspace = trained.model.workspace(*kernels, 16);
    Arena gradients = trained.gradients();
    float first = 0, loss = 0;
    for (int step = 0; step < 400; ++step) {
      trained.model.forward_backward(workspace, inputs, view(labels), gradients.values(), 1.0F / 16, loss);
      if (step == 0) first = loss;
      optimizer.apply({0, gradients.size()}, trained.state.parameters(), gradients.values(), slots,
                      {.learning_rate = 0.02F, .step = step});
    }
    CHECK(first > 1.5F);
    CHECK(loss < 0.05F);
    float loss_sum = 0;
    std::int64_t correct = 0;
    trained.model.evaluate(workspace, inputs, view(labels), loss_sum, correct);
    CHECK(correct == 16);
  }
}

TEST_CASE("a plain Relu layer is the same function as Dense's own") {
  const auto kernels = make_kernels();
  State state;
  Sequential model{{6}};
  model.add(Dense{5}).add(Relu{}).add(Dense{10});
  model.declare(state);
  PlainAllocator allocator;
  state.freeze(allocator);
  test::Trained fused({6}, {5}, 10);
  fused.ready();
  std::ranges::copy(fused.state.parameters(), state.parameters().begin());
  const auto inputs = test::normal_values(3 * 6, 110);
  const auto labels = test::random_labels(3, 10, 111);
  Arena a = fused.gradients(), b = fused.gradients();
  float loss_a = 0, loss_b = 0;
  Workspace one = fused.model.workspace(*kernels, 3);
  Workspace other = model.workspace(*kernels, 3);
  fused.model.forward_backward(one, inputs, view(labels), a.values(), 1.0F, loss_a);
  model.forward_backward(other, inputs, view(labels), b.values(), 1.0F, loss_b);
  CHECK(loss_a == loss_b);
  CHECK(test::same_bits(a.values(), b.values()));
}

TEST_CASE("names, counts and descriptions are those of the layers") {
  test::Trained trained({28, 28}, {512, 512}, 10);
  const auto& tensors = trained.state.parameter_tensors();
  REQUIRE(tensors.size() == 6);
  CHECK(tensors[0].name() == "dense0/weight");
  CHECK(tensors[0].shape() == Shape{784, 512});
  CHECK(tensors[5].name() == "dense2/bias");
  CHECK(tensors[5].shape() == Shape{10});
  CHECK(trained.model.parameter_count() == 669706);
  CHECK(trained.model.flops_per_sample() == 2 * (2 * 784 * 512 + 3 * 512 * 512 + 3 * 512 * 10));
  CHECK(trained.model.describe() ==
        "dense 784 -> 512, relu\ndense 512 -> 512, relu\ndense 512 -> 10\nsoftmax cross-entropy");
}

TEST_CASE("wrong sizes and a wrong order of calls are refused") {
  const auto kernels = make_kernels();
  test::Trained trained({4}, {3}, 10);
  trained.ready();
  CHECK_THROWS_AS(trained.model.workspace(*kernels, 0), UsageError);
  CHECK_THROWS_AS(trained.model.add(Dense{3}), UsageError);
  Workspace workspace = trained.model.workspace(*kernels, 2);
  Arena gradients = trained.gradients();
  const std::vector<float> inputs(12);
  const std::vector<std::int32_t> labels(3);
  float loss = 0;
  const auto pass = [&](std::size_t values, std::size_t count, std::span<float> arena) {
    trained.model.forward_backward(workspace, std::span(inputs).first(values), view(labels).first(count),
                                   arena, 1.0F, loss);
  };
  CHECK_NOTHROW(pass(8, 2, gradients.values()));
  CHECK_THROWS_AS(pass(12, 3, gradients.values()), UsageError);
  CHECK_THROWS_AS(pass(7, 2, gradients.values()), UsageError);
  CHECK_THROWS_AS(pass(0, 0, gradients.values()), UsageError);
  CHECK_THROWS_AS(pass(8, 1, gradients.values()), UsageError);
  CHECK_THROWS_AS(pass(8, 2, gradients.values().first(16)), UsageError);
  State state;
  Sequential empty{{4}};
  CHECK_THROWS_AS(empty.declare(state), UsageError);
  CHECK_THROWS_AS(empty.workspace(*kernels, 1), UsageError);
}

}  // namespace
}  // namespace lockstep
