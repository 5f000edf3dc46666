// Our own copy of Eigen, under a name of its own: a program that uses Eigen too, perhaps with other flags,
// must neither see the blocking sizes that are fixed here nor lend us its instantiations. The pinned limit
// keeps Eigen's packed blocks on the stack, so that no product allocates.
#define Eigen lockstep_eigen
#define EIGEN_DONT_PARALLELIZE
#define EIGEN_STACK_ALLOCATION_LIMIT 1310720
#include <algorithm>

#include <Eigen/Core>
#include <fmt/format.h>

#include "bf16_product.hpp"
#include "convolution_by_products.hpp"
#include "kernels_internal.hpp"

namespace lockstep {
namespace {

// Eigen derives its blocking from cache sizes that it would otherwise read from the machine; blocking decides
// the order of sums. These suit current server cores.
constexpr int kFirstCache = 32 * 1024;
constexpr int kSecondCache = 512 * 1024;
constexpr int kThirdCache = 1024 * 1024;

// Columns of the result that are computed at once: Eigen's packed blocks grow with them, and must stay below
// the limit above.
constexpr std::int64_t kColumns = 512;

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const Matrix, Eigen::Unaligned, Eigen::OuterStride<>>;
using Map = Eigen::Map<Matrix, Eigen::Unaligned, Eigen::OuterStride<>>;

template <typename A, typename B>
void multiply(const A& a, const B& b, bool accumulate, Map c) {
  // Always the blocked product: for few elements Eigen's lazy one would sum in an order that depends on where
  // the buffers lie.
  if (!accumulate) c.setZero();
  Eigen::internal::generic_product_impl<A, B, Eigen::DenseShape, Eigen::DenseShape,
                                        Eigen::GemmProduct>::scaleAndAddTo(c, a, b, 1.0F);
}

void multiply_columns(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
                      std::int64_t lda, const float* b, std::int64_t ldb, bool accumulate, float* c,
                      std::int64_t ldc) {
  const ConstMap left(a, ta ? k : m, ta ? m : k, Eigen::OuterStride<>(lda));
  const ConstMap right(b, tb ? n : k, tb ? k : n, Eigen::OuterStride<>(ldb));
  const Map product(c, m, n, Eigen::OuterStride<>(ldc));
  if (ta && tb) {
    multiply(left.transpose(), right.transpose(), accumulate, product);
  } else if (ta) {
    multiply(left.transpose(), right, accumulate, product);
  } else if (tb) {
    multiply(left, right.transpose(), accumulate, product);
  } else {
    multiply(left, right, accumulate, product);
  }
}

class EigenKernels final : public Kernels {
 public:
  explicit EigenKernels(bool bf16) : bf16_(bf16) {}

  std::string_view name() const noexcept override { return "eigen"; }

  std::string description() const override {
    return fmt::format("Eigen {}.{}.{}, blocks {}/{}/{} KiB x {}", EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION,
                       EIGEN_MINOR_VERSION, kFirstCache / 1024, kSecondCache / 1024, kThirdCache / 1024,
                       kColumns);
  }

  std::string instruction_set() const override {
    return Eigen::SimdInstructionSetsInUse() + std::string(bf16_ ? ", AVX512-BF16" : "");
  }

  Precision precision() const noexcept override { return bf16_ ? Precision::bf16 : Precision::f32; }

  void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
            const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool accumulate, float* c,
            std::int64_t ldc) const override {
    if (bf16_) {
      bf16_product(transpose_a == Transpose::yes, transpose_b == Transpose::yes, m, n, k, a, lda, b, ldb,
                   accumulate, {}, c, ldc);
      return;
    }
    for (std::int64_t j = 0; j < n; j += kColumns) {
      const std::int64_t columns = std::min(kColumns, n - j);
      multiply_columns(transpose_a == Transpose::yes, transpose_b == Transpose::yes, m, columns, k, a, lda,
                       transpose_b == Transpose::yes ? b + j * ldb : b + j, ldb, accumulate, c + j, ldc);
    }
  }

  void affine(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, const float* b,
              std::span<const float> bias, bool relu, float* c) const override {
    if (bf16_) {
      bf16_product(false, false, m, n, k, a, k, b, n, false, {bias.data(), relu}, c, n);
    } else {
      Kernels::affine(m, n, k, a, b, bias, relu, c);
    }
  }

  std::unique_ptr<Convolution> convolution(const ConvolutionShape& shape, std::int64_t) const override {
    return convolution_by_products(*this, shape);
  }

 private:
  bool bf16_;
};

}  // namespace

std::unique_ptr<Kernels> make_eigen_kernels(bool bf16) {
  Eigen::setCpuCacheSizes(kFirstCache, kSecondCache, kThirdCache);
  return std::make_unique<EigenKernels>(bf16);
}

}  // namespace lockstep
