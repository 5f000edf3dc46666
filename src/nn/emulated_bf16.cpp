#include "emulated_bf16.hpp"

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include <lockstep/base/bfloat16.hpp>
#include <lockstep/nn/elementwise.hpp>

namespace lockstep {
namespace {

float rounded(float value) noexcept {
  return from_bfloat16(to_bfloat16(value));
}

/// A copy of `values`, rounded, in memory that is kept.
std::span<const float> round_into(std::vector<float>& room, std::span<const float> values) {
  if (room.size() < values.size()) room.resize(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) room[i] = rounded(values[i]);
  return std::span<const float>(room).first(values.size());
}

/// The same of rows that lie `distance` apart, as rows without a distance.
const float* round_rows(std::vector<float>& room, std::int64_t rows, std::int64_t columns,
                        const float* values, std::int64_t distance) {
  const auto size = static_cast<std::size_t>(rows * columns);
  if (room.size() < size) room.resize(size);
  for (std::int64_t i = 0; i < rows; ++i) {
    const float* from = values + i * distance;
    float* to = room.data() + i * columns;
    for (std::int64_t j = 0; j < columns; ++j) to[j] = rounded(from[j]);
  }
  return room.data();
}

class EmulatedConvolution final : public Convolution {
 public:
  explicit EmulatedConvolution(std::unique_ptr<Convolution> convolution)
      : convolution_(std::move(convolution)) {}

  void forward(std::int64_t samples, std::span<const float> input, std::span<const float> weight,
               std::span<const float> bias, std::span<float> output) override {
    convolution_->forward(samples, round_into(data_, input), round_into(weight_, weight), bias, output);
  }

  void input_gradient(std::int64_t samples, std::span<const float> output_gradient,
                      std::span<const float> weight, std::span<float> input_gradient) override {
    convolution_->input_gradient(samples, round_into(data_, output_gradient), round_into(weight_, weight),
                                 input_gradient);
  }

  void weight_gradient(std::int64_t samples, std::span<const float> input,
                       std::span<const float> output_gradient, std::span<float> weight_gradient,
                       std::span<float> bias_gradient) override {
    convolution_->weight_gradient(samples, round_into(data_, input), round_into(gradient_, output_gradient),
                                  weight_gradient, {});
    if (!bias_gradient.empty()) column_sums(output_gradient, bias_gradient);
  }

 private:
  std::unique_ptr<Convolution> convolution_;
  std::vector<float> data_, gradient_, weight_;
};

class EmulatedKernels final : public Kernels {
 public:
  explicit EmulatedKernels(std::unique_ptr<Kernels> kernels) : kernels_(std::move(kernels)) {}

  std::string_view name() const noexcept override { return kernels_->name(); }
  std::string description() const override { return kernels_->description(); }
  std::string instruction_set() const override { return kernels_->instruction_set() + ", bf16 emulated"; }
  Precision precision() const noexcept override { return Precision::emulated_bf16; }

  void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
            const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool accumulate, float* c,
            std::int64_t ldc) const override {
    thread_local std::vector<float> room_a, room_b;
    const bool ta = transpose_a == Transpose::yes;
    const bool tb = transpose_b == Transpose::yes;
    kernels_->gemm(transpose_a, transpose_b, m, n, k, round_rows(room_a, ta ? k : m, ta ? m : k, a, lda),
                   ta ? m : k, round_rows(room_b, tb ? n : k, tb ? k : n, b, ldb), tb ? k : n, accumulate, c,
                   ldc);
  }

  std::unique_ptr<Convolution> convolution(const ConvolutionShape& shape,
                                           std::int64_t samples) const override {
    return std::make_unique<EmulatedConvolution>(kernels_->convolution(shape, samples));
  }

 private:
  std::unique_ptr<Kernels> kernels_;
};

}  // namespace

std::unique_ptr<Kernels> emulate_bf16(std::unique_ptr<Kernels> kernels) {
  return std::make_unique<EmulatedKernels>(std::move(kernels));
}

}  // namespace lockstep
