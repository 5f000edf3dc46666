#pragma once

#include <lockstep/nn/layer.hpp>

namespace lockstep {

enum class Activation { none, relu };

struct DenseOptions {
  Activation activation = Activation::none;
  bool each_position = false;  ///< over the last dimension alone: [..., inputs] becomes [..., outputs]
  bool bias = true;
  float deviation = 0;  ///< of normal initial weights; 0: uniform ones, He's for ReLU and Glorot's otherwise
};

/// output = activation(input * weight + bias), over samples of any shape, taken as one row each, or over each
/// position of them. Parameters: "weight" [inputs, outputs] and, unless left out, "bias" [outputs]; initial
/// biases are zero.
class Dense final : public Layer {
 public:
  explicit Dense(std::int64_t outputs, Activation activation = Activation::none);
  Dense(std::int64_t outputs, DenseOptions options);

  std::string_view kind() const noexcept override { return "dense"; }
  std::string describe() const override;
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  void initialize(const State& state, std::uint64_t seed) const override;
  std::size_t room_size(std::int64_t samples) const override;
  std::int64_t flops_per_sample() const override { return 2 * rows_ * inputs_ * outputs_; }

  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 private:
  std::int64_t rows_ = 1;  // of a sample
  std::int64_t inputs_ = 0;
  std::int64_t outputs_;
  DenseOptions options_;
  Tensor weight_;
  Tensor bias_;
};

}  // namespace lockstep
