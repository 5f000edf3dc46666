// How near do the matrix products of small networks come to what the core can do, with either kernel library,
// and what does a whole forward and backward pass cost?
//
//   OMP_NUM_THREADS=1 nn_kernels [--benchmark_filter=...]
//
// "flops" is the rate of useful operations; the product of 1024 stands for the peak of the core.
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <lockstep/nn/dense.hpp>
#include <lockstep/nn/kernels.hpp>
#include <lockstep/nn/optimizer.hpp>
#include <lockstep/nn/sequential.hpp>

namespace {

using namespace lockstep;

struct Product {
  const char* name;
  Transpose a;
  Transpose b;
  std::int64_t m;
  std::int64_t n;
  std::int64_t k;
};

constexpr Transpose kNo = Transpose::no;
constexpr Transpose kYes = Transpose::yes;

// The products of the networks below: forward X W, weights X^T D, inputs D W^T.
constexpr std::array kProducts = {
    Product{"peak", kNo, kNo, 1024, 1024, 1024},          Product{"784_512/forward", kNo, kNo, 128, 512, 784},
    Product{"784_512/weights", kYes, kNo, 784, 512, 128}, Product{"512_512/forward", kNo, kNo, 128, 512, 512},
    Product{"512_512/weights", kYes, kNo, 512, 512, 128}, Product{"512_512/inputs", kNo, kYes, 128, 512, 512},
    Product{"784_256/forward", kNo, kNo, 64, 256, 784},   Product{"784_256/weights", kYes, kNo, 784, 256, 64},
    Product{"256_128/forward", kNo, kNo, 64, 128, 256},   Product{"256_128/weights", kYes, kNo, 256, 128, 64},
    Product{"128_10/forward", kNo, kNo, 64, 10, 128},     Product{"128_10/weights", kYes, kNo, 128, 10, 64},
};

void flops(benchmark::State& run, double per_iteration) {
  run.counters["flops"] = benchmark::Counter(per_iteration, benchmark::Counter::kIsIterationInvariantRate);
}

void gemm(benchmark::State& run, KernelChoice choice, const Product& p) {
  const auto kernels = make_kernels(choice);
  const std::vector<float> a(static_cast<std::size_t>(p.m * p.k), 0.5F);
  const std::vector<float> b(static_cast<std::size_t>(p.k * p.n), 0.25F);
  std::vector<float> c(static_cast<std::size_t>(p.m * p.n));
  for ([[maybe_unused]] auto iteration : run) {
    kernels->gemm(p.a, p.b, p.m, p.n, p.k, a.data(), p.a == kYes ? p.m : p.k, b.data(),
                  p.b == kYes ? p.k : p.n, false, c.data(), p.n);
    benchmark::ClobberMemory();
  }
  flops(run, 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k));
}

struct Network {
  const char* name;
  std::vector<std::int64_t> widths;
  std::int64_t micro_batch;
};

Sequential make_model(const Network& network) {
  Sequential model({network.widths.front()});
  for (std::size_t i = 1; i < network.widths.size(); ++i) {
    model.add(Dense(network.widths[i], i + 1 < network.widths.size() ? Activation::relu : Activation::none));
  }
  return model;
}

void forward_backward(benchmark::State& run, KernelChoice choice, const Network& network) {
  const auto kernels = make_kernels(choice);
  State state;
  Sequential model = make_model(network);
  model.declare(state);
  PlainAllocator allocator;
  state.freeze(allocator);
  model.initialize(state, 1);
  Workspace workspace = model.workspace(*kernels, network.micro_batch);
  std::vector<float> inputs(static_cast<std::size_t>(network.micro_batch * network.widths.front()));
  for (std::size_t i = 0; i < inputs.size(); ++i) inputs[i] = static_cast<float>(i % 17) / 17.0F;
  std::vector<std::int32_t> labels(static_cast<std::size_t>(network.micro_batch));
  for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<std::int32_t>(i % 10);
  const Arena gradients = allocator.allocate(state.parameter_elements());
  float loss = 0;
  for ([[maybe_unused]] auto iteration : run) {
    model.forward_backward(workspace, inputs, Targets(std::span<const std::int32_t>(labels)),
                           gradients.values(), 1.0F / static_cast<float>(network.micro_batch), loss);
    benchmark::DoNotOptimize(loss);
  }
  flops(run, static_cast<double>(model.flops_per_sample() * network.micro_batch));
  run.counters["samples/s"] = benchmark::Counter(static_cast<double>(network.micro_batch),
                                                 benchmark::Counter::kIsIterationInvariantRate);
}

void update(benchmark::State& run, const Optimizer& optimizer) {
  constexpr std::size_t kElements = 669'712;  // 784-512-512-10
  PlainAllocator allocator;
  const Arena parameters = allocator.allocate(kElements);
  const Arena gradients = allocator.allocate(kElements);
  std::vector<Arena> arenas;
  std::vector<std::span<float>> slots;
  for (std::size_t i = 0; i < optimizer.slot_names().size(); ++i) {
    arenas.push_back(allocator.allocate(kElements));
    slots.push_back(arenas.back().values());
  }
  for (float& value : gradients.values()) value = 1e-3F;
  for ([[maybe_unused]] auto iteration : run) {
    optimizer.apply({0, kElements}, parameters.values(), gradients.values(), slots, {.learning_rate = 1e-3F});
    benchmark::ClobberMemory();
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::array networks = {Network{"784_512_512_10/128", {784, 512, 512, 10}, 128},
                               Network{"784_256_128_10/64", {784, 256, 128, 10}, 64},
                               Network{"784_256_128_10/256", {784, 256, 128, 10}, 256}};
  for (const KernelChoice choice : built_kernels()) {
    const std::string library(make_kernels(choice)->name());
    for (const Product& product : kProducts) {
      benchmark::RegisterBenchmark((library + "/gemm/" + product.name).c_str(),
                                   [=](benchmark::State& run) { gemm(run, choice, product); });
    }
    for (const Network& network : networks) {
      benchmark::RegisterBenchmark((library + "/forward_backward/" + network.name).c_str(),
                                   [=](benchmark::State& run) { forward_backward(run, choice, network); });
    }
  }
  benchmark::RegisterBenchmark("update/momentum/670k",
                               [](benchmark::State& run) { update(run, Momentum()); });
  benchmark::RegisterBenchmark("update/adam/670k", [](benchmark::State& run) { update(run, Adam()); });
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
