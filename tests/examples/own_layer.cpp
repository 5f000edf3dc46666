#include <algorithm>
#include <cstdio>

#include <lockstep/lockstep.hpp>
using namespace lockstep;

/// output = input * factor, one factor for each feature (the last dimension). Parameter: "factor", ones at first.
class Scale final : public Layer {
 public:
  std::string_view kind() const noexcept override { return "scale"; }
  std::string describe() const override { return "scale"; }
  Shape declare(State& state, const std::string& name, const Shape& input) override {
    factor_ = state.parameter(name + "/factor", {input.back()});
    return input;
  }
  void initialize(const State&, std::uint64_t) const override { std::ranges::fill(factor_.values(), 1.0F); }
  void forward(const Pass&, std::span<const float> input, std::span<float> output, std::span<float>) const override {
    const auto factor = factor_.values();
    for (std::size_t i = 0; i < input.size(); ++i) output[i] = input[i] * factor[i % factor.size()];
  }
  void backward(const Pass&, std::span<const float> input, std::span<const float>, std::span<float> output_gradient,
                std::span<float> input_gradient, std::span<float> gradients, std::span<float>) const override {
    const auto factor = factor_.values();
    const auto gradient = factor_.in(gradients);  // where ours lies among those of all parameters
    std::ranges::fill(gradient, 0.0F);
    for (std::size_t i = 0; i < input.size(); ++i) gradient[i % factor.size()] += output_gradient[i] * input[i];
    if (input_gradient.empty()) return;  // below there are no parameters
    for (std::size_t i = 0; i < input.size(); ++i) input_gradient[i] = output_gradient[i] * factor[i % factor.size()];
  }

 private:
  Tensor factor_;
};

int main() {
  const auto kernels = make_kernels();
  const GradientReport report = check_gradients(std::make_unique<Scale>(), {5, 3}, *kernels);
  std::printf("worst %.1e, at %s\n", report.worst, report.where.c_str());
  Sequential model{{28, 28}};
  model.add(Dense{64, Activation::relu}).add(Scale{}).add(Dense{10});  // trains as any other
  return report.worst < 3e-3 ? 0 : 1;
}
