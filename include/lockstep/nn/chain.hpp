#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// Layers one after the other, as one layer: the body of a Sequential, and the branches of Residual and
/// Concatenate. Without layers it passes its input on.
///
/// Parameters are named by kind and count behind the chain's own name: "residual0/conv1/weight".
class Chain final : public Layer {
 public:
  template <std::derived_from<Layer> T>
  Chain& add(T layer) {
    return add(std::make_unique<T>(std::move(layer)));
  }
  Chain& add(std::unique_ptr<Layer> layer);

  bool empty() const noexcept { return parts_.empty(); }

  std::string_view kind() const noexcept override { return "chain"; }

  /// One line for each layer.
  std::string describe() const override;
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  void initialize(const State& state, std::uint64_t seed) const override;
  std::unique_ptr<Plan> plan(const Kernels& kernels, std::int64_t samples) const override;
  std::size_t scratch_size(std::int64_t samples) const override;
  std::size_t room_size(std::int64_t samples) const override;
  std::int64_t flops_per_sample() const override;

  /// Those to train: forward, and backward at twice the cost, less the input gradients that nobody computes
  /// in and below the first layer with parameters.
  std::int64_t training_flops_per_sample() const;

  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

  /// The same, and calls `on_ready`, if it is set, whenever a layer's gradients are complete, with the offset
  /// of its first parameter.
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch, const std::function<void(std::size_t)>& on_ready) const;

 private:
  struct Part {
    std::unique_ptr<Layer> layer;
    Shape output = {};
    bool has_parameters = false;
    std::size_t offset = 0;  // of its first parameter in the arena
  };
  struct Places;  // where activations and scratch lie, and the layers' plans

  std::size_t gradient_size(std::int64_t samples) const;  // of the largest activation between two layers

  Shape input_;
  std::vector<Part> parts_;
  std::size_t first_trained_ = 0;  // the first layer with parameters
};

}  // namespace lockstep
