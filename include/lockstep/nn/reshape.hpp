#pragma once

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/layer.hpp>

namespace lockstep {

/// The same values in the same order, as samples of another shape.
class Reshape final : public Layer {
 public:
  explicit Reshape(Shape output) : output_(std::move(output)) {}

  std::string_view kind() const noexcept override { return "reshape"; }
  std::string describe() const override { return "reshape " + to_string(output_); }

  Shape declare(State&, const std::string&, const Shape& input) override {
    if (element_count(input) != element_count(output_)) {
      throw UsageError(fmt::format("samples of shape {} cannot become {}; give a shape of {} elements",
                                   to_string(input), to_string(output_), element_count(input)));
    }
    return output_;
  }

  void forward(const Pass&, std::span<const float> input, std::span<float> output,
               std::span<float>) const override {
    std::ranges::copy(input, output.begin());
  }

  void backward(const Pass&, std::span<const float>, std::span<const float>, std::span<float> output_gradient,
                std::span<float> input_gradient, std::span<float>, std::span<float>) const override {
    if (!input_gradient.empty()) std::ranges::copy(output_gradient, input_gradient.begin());
  }

 private:
  Shape output_;
};

}  // namespace lockstep
