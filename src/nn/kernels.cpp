#include <array>
#include <cstddef>
#include <span>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/kernels.hpp>

#include "bf16_product.hpp"
#include "emulated_bf16.hpp"
#include "kernels_internal.hpp"

namespace lockstep {

KernelChoice kernel_choice(std::string_view word) {
  if (word == "auto") return KernelChoice::automatic;
  if (word == "eigen") return KernelChoice::eigen;
  if (word == "onednn") return KernelChoice::onednn;
  throw UsageError(fmt::format("kernels '{}' are unknown; choose auto, onednn or eigen", word));
}

std::vector<KernelChoice> built_kernels() {
  std::vector<KernelChoice> kernels{KernelChoice::eigen};
  if (onednn_is_built()) kernels.push_back(KernelChoice::onednn);
  return kernels;
}

Precision precision_choice(std::string_view word) {
  if (word == "f32") return Precision::f32;
  if (word == "bf16") return Precision::bf16;
  throw UsageError(fmt::format("precision '{}' is unknown; choose f32 or bf16", word));
}

std::unique_ptr<Kernels> make_kernels(KernelChoice choice, Precision precision) {
  if (choice == KernelChoice::automatic) {
    choice = onednn_is_built() ? KernelChoice::onednn : KernelChoice::eigen;
  }
  const bool onednn = choice == KernelChoice::onednn;
  const bool native = precision == Precision::bf16 && has_bf16_products() && (!onednn || onednn_has_bf16());
  auto kernels = onednn ? make_onednn_kernels(native) : make_eigen_kernels(native);
  return precision == Precision::f32 || native ? std::move(kernels) : emulate_bf16(std::move(kernels));
}

void Kernels::affine(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, const float* b,
                     std::span<const float> bias, bool relu, float* c) const {
  gemm(Transpose::no, Transpose::no, m, n, k, a, k, b, n, false, c, n);
  const std::span rows(c, static_cast<std::size_t>(m * n));
  relu ? add_bias_relu(rows, bias) : add_bias(rows, bias);
}

void warm_up(const Kernels& kernels) {
  // As small as can be without taking the path that oneDNN has for vectors.
  constexpr std::size_t kSide = 32;
  std::array<float, kSide * kSide> a{};
  std::array<float, kSide * kSide> b{};
  std::array<float, kSide * kSide> c{};
  kernels.gemm(Transpose::no, Transpose::no, kSide, kSide, kSide, a.data(), kSide, b.data(), kSide, false,
               c.data(), kSide);
}

}  // namespace lockstep
