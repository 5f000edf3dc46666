#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/convolution_layer.hpp>

namespace lockstep {
namespace {

struct ConvolutionPlan final : Plan {
  std::unique_ptr<Convolution> convolution;
};

Convolution& convolution_of(const Pass& pass) {
  return *static_cast<ConvolutionPlan&>(*pass.plan).convolution;
}

}  // namespace

ConvolutionLayer::ConvolutionLayer(std::size_t dimensions, std::int64_t filters, std::int64_t kernel,
                                   const ConvolutionOptions& options)
    : dimensions_(dimensions), options_(options) {
  if (filters < 1 || kernel < 1 || options.stride < 1 || options.padding < 0 || options.groups < 1 ||
      filters % options.groups != 0) {
    throw UsageError(fmt::format(
        "a convolution of {} filters, kernel {}, stride {}, padding {}, {} groups cannot be; give "
        "sizes of at least 1, a padding of at least 0, and groups that divide the filters",
        filters, kernel, options.stride, options.padding, options.groups));
  }
  shape_.output_channels = filters;
  shape_.groups = options.groups;
  for (std::size_t d = 3 - dimensions; d < 3; ++d) {
    shape_.kernel[d] = kernel;
    shape_.stride[d] = options.stride;
    shape_.padding[d] = options.padding;
  }
}

std::string ConvolutionLayer::describe() const {
  std::string text = fmt::format("{} {} -> {}, kernel {}", kind(), shape_.input_channels,
                                 shape_.output_channels, shape_.kernel[2]);
  if (options_.stride > 1) text += fmt::format(", stride {}", options_.stride);
  if (options_.padding > 0) text += fmt::format(", padding {}", options_.padding);
  if (options_.groups > 1) text += fmt::format(", {} groups", options_.groups);
  return text;
}

Shape ConvolutionLayer::declare(State& state, const std::string& name, const Shape& input) {
  if (input.size() != dimensions_ && input.size() != dimensions_ + 1) {
    throw UsageError(fmt::format("a {} layer takes samples of {} dimensions and channels (got {})", kind(),
                                 dimensions_, to_string(input)));
  }
  shape_.input_channels = input.size() == dimensions_ ? 1 : input.back();
  Shape output;
  for (std::size_t d = 0; d < dimensions_; ++d) {
    const std::size_t at = 3 - dimensions_ + d;
    shape_.input[at] = input[d];
    if (shape_.input[at] + 2 * shape_.padding[at] < shape_.kernel[at]) {
      throw UsageError(fmt::format("a kernel of {} is larger than samples of {} with padding {}",
                                   shape_.kernel[at], to_string(input), shape_.padding[at]));
    }
    output.push_back(shape_.output(at));
  }
  if (shape_.input_channels % shape_.groups != 0) {
    throw UsageError(
        fmt::format("{} groups do not divide {} channels", shape_.groups, shape_.input_channels));
  }
  output.push_back(shape_.output_channels);
  Shape weight(dimensions_, shape_.kernel[2]);
  weight.push_back(shape_.input_channels / shape_.groups);
  weight.push_back(shape_.output_channels);
  weight_ = state.parameter(name + "/weight", weight);
  if (options_.bias) bias_ = state.parameter(name + "/bias", {shape_.output_channels});
  return output;
}

void ConvolutionLayer::initialize(const State& state, std::uint64_t seed) const {
  const auto fan = static_cast<double>(shape_.window() * (shape_.input_channels / shape_.groups));
  fill_uniform(state, weight_, seed, static_cast<float>(std::sqrt(6.0 / fan)));
  if (options_.bias) std::ranges::fill(bias_.values(), 0.0F);
}

std::unique_ptr<Plan> ConvolutionLayer::plan(const Kernels& kernels, std::int64_t samples) const {
  auto plan = std::make_unique<ConvolutionPlan>();
  plan->convolution = kernels.convolution(shape_, samples);
  return plan;
}

void ConvolutionLayer::forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                               std::span<float>) const {
  convolution_of(pass).forward(pass.samples, input, weight_.values(),
                               options_.bias ? bias_.values() : std::span<float>(), output);
}

void ConvolutionLayer::backward(const Pass& pass, std::span<const float> input, std::span<const float>,
                                std::span<float> output_gradient, std::span<float> input_gradient,
                                std::span<float> gradients, std::span<float>) const {
  Convolution& convolution = convolution_of(pass);
  convolution.weight_gradient(pass.samples, input, output_gradient, weight_.in(gradients),
                              options_.bias ? bias_.in(gradients) : std::span<float>());
  if (!input_gradient.empty()) {
    convolution.input_gradient(pass.samples, output_gradient, weight_.values(), input_gradient);
  }
}

}  // namespace lockstep
