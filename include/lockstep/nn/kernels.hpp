#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/nn/convolution.hpp>

namespace lockstep {

enum class KernelChoice { automatic, eigen, onednn };

/// "auto", "eigen" or "onednn", as on the command line. Throws UsageError for another word.
KernelChoice kernel_choice(std::string_view word);

/// What the operands of matrix work are rounded to; sums are fp32 in any case, and so is all other work.
/// Emulated where the CPU has no instructions for bf16: the operands are rounded, then multiplied as fp32.
enum class Precision { f32, bf16, emulated_bf16 };

/// "f32" or "bf16", as on the command line. Throws UsageError for another word.
Precision precision_choice(std::string_view word);

enum class Transpose : bool { no, yes };

/// The matrix work of all layers; everything else is plain loops of this library (elementwise.hpp).
///
/// Implementations are single-threaded, keep nothing between calls and allocate nothing after the first call,
/// so several threads may use one object; but oneDNN's products in fp32 take a packing buffer from the heap
/// and give it back. What is worth keeping between calls is made once, for one thread, by `convolution`. The
/// bits of a result depend on the values and the sizes alone: not on where the buffers lie, nor on what ran
/// before.
class Kernels {
 public:
  virtual ~Kernels() = default;

  virtual std::string_view name() const noexcept = 0;

  /// What decides the bits on one type of CPU: library, version, blocking sizes. Ranks compare it at start,
  /// and a run goes on only with the same.
  virtual std::string description() const = 0;

  /// What the library uses of this CPU: "AVX-512 BF16". Ranks compare it at start; on another CPU a run goes
  /// on with a warning, since its bits may differ from here on.
  virtual std::string instruction_set() const = 0;

  virtual Precision precision() const noexcept { return Precision::f32; }

  /// C (m x n) = op(A) (m x k) times op(B) (k x n), plus C if `accumulate`. Row-major; a leading dimension is
  /// the distance between rows as stored (before the transposition). C overlaps neither A nor B.
  virtual void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n,
                    std::int64_t k, const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
                    bool accumulate, float* c, std::int64_t ldc) const = 0;

  /// C (m x n) = A (m x k) times B (k x n), plus `bias` in each row, and cut below zero if `relu`. No gaps
  /// between rows. The bits are those of gemm, and add_bias or add_bias_relu after it.
  virtual void affine(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, const float* b,
                      std::span<const float> bias, bool relu, float* c) const;

  /// Makes a convolution for passes over up to `samples` samples. Refers to this object.
  virtual std::unique_ptr<Convolution> convolution(const ConvolutionShape& shape,
                                                   std::int64_t samples) const = 0;
};

/// `automatic` takes oneDNN where it was built in. Throws UsageError for one that was not. `bf16` is emulated
/// where it has to be: `precision` of the result says so.
///
/// In bf16 the operands of products and convolutions (inputs, weights, gradients of outputs) are rounded to
/// the nearest, ties to even; NaN stays NaN. Biases are added in fp32. Each element of a result is within
/// 2^-8 times the sum of the sizes of its terms of that in fp32. For the same values a result has the same
/// bits in any place, as in fp32; emulation gives other bits.
std::unique_ptr<Kernels> make_kernels(KernelChoice choice = KernelChoice::automatic,
                                      Precision precision = Precision::f32);

/// Runs one small product, so that what a library does once in a process is done now: oneDNN compiles its
/// kernels, which takes some 30 ms. Changes no result. Local; on any thread, so that it can be done while
/// something else is waited for.
void warm_up(const Kernels& kernels);

/// What this build has.
std::vector<KernelChoice> built_kernels();

}  // namespace lockstep
