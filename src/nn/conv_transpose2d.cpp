#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/conv_transpose2d.hpp>
#include <lockstep/nn/elementwise.hpp>

namespace lockstep {
namespace {

struct ConvolutionPlan final : Plan {
  std::unique_ptr<Convolution> convolution;
};

Convolution& convolution_of(const Pass& pass) {
  return *static_cast<ConvolutionPlan&>(*pass.plan).convolution;
}

}  // namespace

ConvTranspose2d::ConvTranspose2d(std::int64_t filters, std::int64_t kernel, std::int64_t stride) {
  if (filters < 1 || kernel < 1 || stride < 1) {
    throw UsageError(fmt::format(
        "a transposed convolution of {} filters, kernel {}, stride {} cannot be; give sizes of at "
        "least 1",
        filters, kernel, stride));
  }
  shape_.input_channels = filters;
  shape_.kernel = {1, kernel, kernel};
  shape_.stride = {1, stride, stride};
}

std::string ConvTranspose2d::describe() const {
  return fmt::format("conv_transpose {} -> {}, kernel {}, stride {}", shape_.output_channels,
                     shape_.input_channels, shape_.kernel[2], shape_.stride[2]);
}

Shape ConvTranspose2d::declare(State& state, const std::string& name, const Shape& input) {
  if (input.size() != 3) {
    throw UsageError(fmt::format(
        "a transposed convolution takes samples of 2 dimensions and channels (got {})", to_string(input)));
  }
  shape_.output_channels = input[2];
  for (std::size_t d = 1; d < 3; ++d) {
    shape_.input[d] = (input[d - 1] - 1) * shape_.stride[d] + shape_.kernel[d];
  }
  const std::int64_t filters = shape_.input_channels;
  weight_ = state.parameter(name + "/weight", {shape_.kernel[1], shape_.kernel[2], filters, input[2]});
  bias_ = state.parameter(name + "/bias", {filters});
  return {shape_.input[1], shape_.input[2], filters};
}

void ConvTranspose2d::initialize(const State& state, std::uint64_t seed) const {
  // About this many terms add up to one output.
  const auto fan = static_cast<double>(shape_.output_channels) *
                   std::max(1.0, static_cast<double>(shape_.window()) /
                                     static_cast<double>(shape_.stride[1] * shape_.stride[2]));
  fill_uniform(state, weight_, seed, static_cast<float>(std::sqrt(6.0 / fan)));
  std::ranges::fill(bias_.values(), 0.0F);
}

std::unique_ptr<Plan> ConvTranspose2d::plan(const Kernels& kernels, std::int64_t samples) const {
  auto plan = std::make_unique<ConvolutionPlan>();
  plan->convolution = kernels.convolution(shape_, samples);
  return plan;
}

void ConvTranspose2d::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                              std::span<float>) const {
  convolution_of(pass).input_gradient(pass.samples, input, weight_.values(), output);
  add_bias(output, bias_.values());
}

void ConvTranspose2d::backward(const Pass& pass, std::span<const float> input, std::span<const float>,
                               std::span<float> output_gradient, std::span<float> input_gradient,
                               std::span<float> gradients, std::span<float>) const {
  Convolution& convolution = convolution_of(pass);
  convolution.weight_gradient(pass.samples, output_gradient, input, weight_.in(gradients), {});
  column_sums(output_gradient, bias_.in(gradients));
  if (!input_gradient.empty()) {
    convolution.forward(pass.samples, output_gradient, weight_.values(), {}, input_gradient);
  }
}

}  // namespace lockstep
