#pragma once

#include <lockstep/nn/convolution.hpp>
#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// The transpose of a convolution, which makes samples larger: [height, width, channels] becomes
/// [(height - 1) * stride + kernel, (width - 1) * stride + kernel, filters]. Each input pixel adds its
/// weighted kernel to a window of the output. Parameters: "weight" [kernel, kernel, filters, channels] and
/// "bias" [filters].
class ConvTranspose2d final : public Layer {
 public:
  /// Throws UsageError for sizes below 1.
  ConvTranspose2d(std::int64_t filters, std::int64_t kernel, std::int64_t stride = 1);

  std::string_view kind() const noexcept override { return "conv_transpose"; }
  std::string describe() const override;
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  void initialize(const State& state, std::uint64_t seed) const override;
  std::unique_ptr<Plan> plan(const Kernels& kernels, std::int64_t samples) const override;
  std::int64_t flops_per_sample() const override { return shape_.flops(); }
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 private:
  ConvolutionShape shape_;  // of the convolution whose transpose this is: from our output to our input
  Tensor weight_;
  Tensor bias_;
};

}  // namespace lockstep
