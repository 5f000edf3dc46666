#pragma once

#include <lockstep/nn/convolution.hpp>
#include <lockstep/nn/layer.hpp>

namespace lockstep {

struct ConvolutionOptions {
  std::int64_t stride = 1;
  std::int64_t padding = 0;  ///< zeros on each side
  std::int64_t groups = 1;
  bool bias = true;
};

/// What Conv2d and Conv3d share. Initial weights are uniform (He's), initial biases zero.
class ConvolutionLayer : public Layer {
 public:
  std::string describe() const override;

  /// Throws UsageError for an input of another number of dimensions, too small for the kernel, or whose
  /// channels the groups do not divide.
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  void initialize(const State& state, std::uint64_t seed) const override;
  std::unique_ptr<Plan> plan(const Kernels& kernels, std::int64_t samples) const override;
  std::int64_t flops_per_sample() const override { return shape_.flops(); }
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 protected:
  /// `dimensions`: 2 or 3. Throws UsageError for sizes below 1, or a padding below 0.
  ConvolutionLayer(std::size_t dimensions, std::int64_t filters, std::int64_t kernel,
                   const ConvolutionOptions& options);

 private:
  std::size_t dimensions_;
  ConvolutionOptions options_;
  ConvolutionShape shape_;
  Tensor weight_;
  Tensor bias_;
};

}  // namespace lockstep
