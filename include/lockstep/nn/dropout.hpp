#pragma once

#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// In training, each element is 0 with probability `rate` and divided by 1 - rate otherwise (Srivastava and
/// others 2014); in evaluation nothing happens. Which elements is a function of (seed, layer's name, step,
/// sample within the global batch, element): the same on any number of ranks and threads.
class Dropout final : public Layer {
 public:
  /// Throws UsageError unless 0 <= rate < 1.
  explicit Dropout(float rate);

  std::string_view kind() const noexcept override { return "dropout"; }
  std::string describe() const override;
  Shape declare(State& state, const std::string& name, const Shape& input) override;
  std::size_t scratch_size(std::int64_t samples) const override;
  void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
               std::span<float> scratch) const override;
  void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                std::span<float> output_gradient, std::span<float> input_gradient, std::span<float> gradients,
                std::span<float> scratch) const override;

 private:
  float rate_;
  std::size_t elements_ = 0;    // of a sample
  std::uint64_t own_seed_ = 0;  // from the name, so that two layers differ
};

}  // namespace lockstep
