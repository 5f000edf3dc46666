// How near does each layer of the networks come to what the core can do?
//
//   OMP_NUM_THREADS=1 nn_layers [--kernels onednn|eigen] [--precision f32|bf16] [NAME...]
//
// NAME selects layers whose line contains it; "sweep" others than those of the networks, large and small,
// that the aim is for, too. For each: the best times of forward and backward, and where it has matrix work
// the share of the matrix peak, which is that of a product of 1024 (in that precision), measured before and
// after. Layers that the aim of 80 % holds for (Dense with all dimensions of at least 128, convolutions of at
// least 32 channels in and out) are marked.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/clock.hpp>
#include <lockstep/nn/attention.hpp>
#include <lockstep/nn/batch_norm.hpp>
#include <lockstep/nn/conv2d.hpp>
#include <lockstep/nn/conv_transpose2d.hpp>
#include <lockstep/nn/dense.hpp>
#include <lockstep/nn/gelu.hpp>
#include <lockstep/nn/layer_norm.hpp>
#include <lockstep/nn/matrix_peak.hpp>
#include <lockstep/nn/max_pool2d.hpp>
#include <lockstep/nn/relu.hpp>
#include <lockstep/state/arena.hpp>
#include <lockstep/state/state.hpp>

namespace {

using namespace lockstep;

struct Case {
  std::string name;
  std::function<std::unique_ptr<Layer>()> make;
  Shape input;
  std::int64_t samples;
  bool aimed = false;  // at 80 % of the peak
  bool first = false;  // nobody wants the gradient of its input
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto dense = [&](const std::string& network, std::int64_t in, std::int64_t out, std::int64_t samples,
                         bool first = false) {
    all.push_back({fmt::format("{} dense {} -> {}", network, in, out),
                   [=] { return std::make_unique<Dense>(out, Activation::relu); },
                   {in},
                   samples,
                   std::min({in, out, samples}) >= 128,
                   first});
  };
  const auto positions = [&](std::int64_t in, std::int64_t out) {
    all.push_back({fmt::format("gpt dense {} -> {}", in, out),
                   [=] { return std::make_unique<Dense>(out, DenseOptions{.each_position = true}); },
                   {128, in},
                   16,
                   true});
  };
  const auto conv = [&](const std::string& network, const Shape& input, std::int64_t filters,
                        std::int64_t kernel, ConvolutionOptions options, std::int64_t samples,
                        bool first = false) {
    all.push_back({fmt::format("{} conv {} -> {}, {}x{} at {}x{}{}", network, input[2], filters, kernel,
                               kernel, input[0], input[1], options.stride > 1 ? ", stride 2" : ""),
                   [=] { return std::make_unique<Conv2d>(filters, kernel, options); }, input, samples,
                   std::min(input[2], filters) >= 32, first});
  };
  const auto other = [&]<class T>(const std::string& network, T, Shape input, std::int64_t samples,
                                  auto... arguments) {
    all.push_back(
        {network,
         [=]() -> std::unique_ptr<Layer> { return std::make_unique<typename T::type>(arguments...); },
         std::move(input), samples});
  };
  dense("mlp", 784, 512, 128, true);
  dense("mlp", 512, 512, 128);
  dense("mlp", 512, 10, 128);
  dense("wide", 1024, 2048, 256, true);
  dense("wide", 2048, 2048, 256);
  dense("wide", 2048, 1000, 256);
  conv("lenet", {28, 28, 1}, 32, 5, {}, 64, true);
  other("lenet max_pool 24x24x32", std::type_identity<MaxPool2d>{}, {24, 24, 32}, 64, 2);
  other("lenet relu 12x12x32", std::type_identity<Relu>{}, {12, 12, 32}, 64);
  conv("lenet", {12, 12, 32}, 64, 5, {}, 64);
  other("lenet max_pool 8x8x64", std::type_identity<MaxPool2d>{}, {8, 8, 64}, 64, 2);
  dense("lenet", 1024, 128, 64);
  dense("lenet", 128, 10, 64);
  const ConvolutionOptions same{.padding = 1, .bias = false};
  const ConvolutionOptions half{.stride = 2, .padding = 1, .bias = false};
  conv("resnet", {32, 32, 3}, 16, 3, same, 64, true);
  conv("resnet", {32, 32, 16}, 16, 3, same, 64);
  conv("resnet", {32, 32, 16}, 32, 3, half, 64);
  conv("resnet", {32, 32, 16}, 32, 1, {.stride = 2, .bias = false}, 64);
  conv("resnet", {16, 16, 32}, 32, 3, same, 64);
  conv("resnet", {16, 16, 32}, 64, 3, half, 64);
  conv("resnet", {16, 16, 32}, 64, 1, {.stride = 2, .bias = false}, 64);
  conv("resnet", {8, 8, 64}, 64, 3, same, 64);
  other("resnet batch_norm 32x32x16", std::type_identity<BatchNorm>{}, {32, 32, 16}, 64,
        BatchNorm::Then::relu);
  other("resnet batch_norm 16x16x32", std::type_identity<BatchNorm>{}, {16, 16, 32}, 64,
        BatchNorm::Then::relu);
  other("resnet batch_norm 8x8x64", std::type_identity<BatchNorm>{}, {8, 8, 64}, 64, BatchNorm::Then::relu);
  conv("unet", {64, 64, 16}, 16, 3, {.padding = 1}, 16);
  conv("unet", {32, 32, 32}, 32, 3, {.padding = 1}, 16);
  conv("unet", {32, 32, 64}, 32, 3, {.padding = 1}, 16);
  conv("unet", {16, 16, 32}, 64, 3, {.padding = 1}, 16);
  conv("unet", {16, 16, 64}, 64, 3, {.padding = 1}, 16);
  other("unet conv_transpose 64 -> 32 at 16x16", std::type_identity<ConvTranspose2d>{}, {16, 16, 64}, 16, 32,
        2, 2);
  other("unet conv_transpose 32 -> 16 at 32x32", std::type_identity<ConvTranspose2d>{}, {32, 32, 32}, 16, 16,
        2, 2);
  positions(128, 384);
  positions(128, 128);
  positions(128, 512);
  positions(512, 128);
  positions(128, 256);
  other("gpt attention 128x128, 4 heads", std::type_identity<CausalAttention>{}, {128, 384}, 16, 4);
  other("gpt layer_norm 128x128", std::type_identity<LayerNorm>{}, {128, 128}, 16);
  other("gpt gelu 128x512", std::type_identity<Gelu>{}, {128, 512}, 16);
  for (const auto& [in, out, samples] : std::vector<std::array<std::int64_t, 3>>{{128, 128, 128},
                                                                                 {129, 131, 137},
                                                                                 {200, 300, 250},
                                                                                 {128, 1000, 128},
                                                                                 {1000, 128, 128},
                                                                                 {128, 4096, 256},
                                                                                 {4096, 128, 256},
                                                                                 {4096, 128, 1000},
                                                                                 {2048, 2048, 128}}) {
    dense(fmt::format("sweep {} samples,", samples), in, out, samples);
  }
  for (const std::int64_t side : {8, 15, 28, 56}) {
    const std::int64_t samples = side > 28 ? 16 : 64;
    for (const std::int64_t kernel : {1, 3, 5}) {
      conv("sweep", {side, side, 32}, 32, kernel, {.padding = kernel / 2}, samples);
      conv("sweep", {side, side, 32}, 64, kernel, {.stride = 2, .padding = kernel / 2}, samples);
    }
    conv("sweep", {side, side, 128}, 128, 3, {.padding = 1}, samples);
    conv("sweep", {side, side, 64}, 256, 1, {}, samples);
    conv("sweep", {side, side, 256}, 64, 1, {}, samples);
  }
  conv("sweep odd channels,", {14, 14, 33}, 47, 3, {.padding = 1}, 64);
  conv("sweep two groups,", {14, 14, 64}, 64, 3, {.padding = 1, .groups = 2}, 64);
  conv("sweep one sample,", {28, 28, 32}, 32, 3, {.padding = 1}, 1);
  conv("sweep no padding,", {12, 12, 32}, 64, 5, {}, 8);
  conv("sweep 7x7,", {28, 28, 32}, 32, 7, {.padding = 3}, 16);
  return all;
}

/// The best of several times, in seconds.
double best(Clock& clock, const std::function<void()>& work) {
  constexpr double kEnough = 0.3;  // seconds
  double least = 1e9;
  const Seconds begin = clock.now();
  work();
  while ((clock.now() - begin).count() < kEnough) {
    const Seconds start = clock.now();
    work();
    least = std::min(least, (clock.now() - start).count());
  }
  return least;
}

void measure(const Case& c, const Kernels& kernels, Clock& clock, double peak) {
  const auto layer = c.make();
  State state;
  const Shape output = layer->declare(state, "layer", c.input);
  PlainAllocator allocator;
  state.freeze(allocator);
  layer->initialize(state, 1);
  const auto elements = [&](const Shape& shape) {
    return static_cast<std::size_t>(element_count(shape) * c.samples);
  };
  const Arena input = allocator.allocate(elements(c.input));
  const Arena result = allocator.allocate(elements(output));
  const Arena slope = allocator.allocate(elements(output));
  const Arena input_slope = allocator.allocate(elements(c.input));
  const Arena gradients = allocator.allocate(std::max<std::size_t>(state.parameter_elements(), 1));
  const Arena scratch = allocator.allocate(std::max<std::size_t>(layer->scratch_size(c.samples), 1));
  const Arena room = allocator.allocate(std::max<std::size_t>(layer->room_size(c.samples), 1));
  const Random random(1, Purpose::test, 0);
  random.fill_uniform(input.values());
  random.fill_uniform(slope.values());
  const auto plan = layer->plan(kernels, c.samples);
  const Pass pass{.kernels = kernels, .samples = c.samples, .plan = plan.get(), .room = room.values()};
  const auto of = [](const Arena& arena, std::size_t size) { return arena.values().first(size); };
  const auto in = of(input, elements(c.input));
  const auto out = of(result, elements(output));
  const auto back = of(slope, elements(output));
  const auto in_slope = c.first ? std::span<float>() : of(input_slope, elements(c.input));
  const double forward = best(clock, [&] { layer->forward(pass, in, out, scratch.values()); });
  const double backward = best(clock, [&] {
    layer->backward(pass, in, out, back, in_slope, of(gradients, state.parameter_elements()),
                    scratch.values());
  });
  const auto flops = static_cast<double>(layer->flops_per_sample() * c.samples);
  std::string share;
  if (flops > 0) {
    const double all = (c.first ? 2 : 3) * flops / (forward + backward) / peak;
    share = fmt::format("{:4.0f} % {:4.0f} % {:4.0f} %{}", 100 * flops / forward / peak,
                        100 * (c.first ? 1 : 2) * flops / backward / peak, 100 * all,
                        c.aimed ? all >= 0.8 ? "  yes" : "  NO" : "");
  }
  std::puts(fmt::format("{:44} {:8.3f} {:8.3f}  {}", c.name, 1e3 * forward, 1e3 * backward, share).c_str());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  KernelChoice choice = KernelChoice::automatic;
  Precision precision = Precision::f32;
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--kernels") == 0 && i + 1 < argc) {
      choice = kernel_choice(argv[++i]);
    } else if (std::strcmp(argv[i], "--precision") == 0 && i + 1 < argc) {
      precision = precision_choice(argv[++i]);
    } else {
      names.emplace_back(argv[i]);
    }
  }
  const auto kernels = make_kernels(choice, precision);
  SystemClock clock;
  double peak = 0;
  for (int i = 0; i < 8; ++i) peak = std::max(peak, matrix_peak(*kernels, clock));
  std::puts(fmt::format("{}, {}; peak {:.1f} Gflop/s", kernels->description(), kernels->instruction_set(),
                        peak * 1e-9)
                .c_str());
  std::puts(
      "                                              forward backward  of the peak: forward, backward, both\n"
      "                                                   ms       ms");
  for (const Case& c : cases()) {
    const bool wanted = names.empty() ? !c.name.starts_with("sweep")
                                      : std::any_of(names.begin(), names.end(), [&](const std::string& name) {
                                          return c.name.find(name) != std::string::npos;
                                        });
    if (wanted) measure(c, *kernels, clock, peak);
  }
  std::puts(fmt::format("peak after: {:.1f} Gflop/s", matrix_peak(*kernels, clock) * 1e-9).c_str());
}
