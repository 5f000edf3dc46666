#include <fmt/format.h>
#include <oneapi/dnnl/dnnl.h>

#include <lockstep/base/error.hpp>

#include "kernels_internal.hpp"

// Of the OpenMP run time that oneDNN is linked with. Declared here since not every compiler that can build
// this file brings omp.h.
extern "C" {
int omp_get_max_threads();
void omp_set_num_threads(int);
}

namespace lockstep {
namespace {

/// Makes oneDNN work on the calling thread alone while it lives. OpenMP keeps this setting for each thread,
/// so others, and the caller afterwards, are not affected.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) {
    if (before_ != 1) omp_set_num_threads(1);
  }
  ~OneThread() {
    if (before_ != 1) omp_set_num_threads(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

class OneDnnKernels final : public Kernels {
 public:
  std::string_view name() const noexcept override { return "onednn"; }

  std::string description() const override {
    const dnnl_version_t& version = *dnnl_version();
    return fmt::format("oneDNN {}.{}.{} sgemm", version.major, version.minor, version.patch);
  }

  std::string instruction_set() const override {
    const auto isa = dnnl_get_effective_cpu_isa();
    switch (isa) {
      case dnnl_cpu_isa_sse41:
        return "SSE4.1";
      case dnnl_cpu_isa_avx:
        return "AVX";
      case dnnl_cpu_isa_avx2:
        return "AVX2";
      case dnnl_cpu_isa_avx512_core:
        return "AVX-512";
      case dnnl_cpu_isa_avx512_core_vnni:
        return "AVX-512 VNNI";
      case dnnl_cpu_isa_avx512_core_bf16:
        return "AVX-512 BF16";
      case dnnl_cpu_isa_avx512_core_amx:
        return "AVX-512 AMX";
      default:
        return fmt::format("instruction set {:#x}", static_cast<unsigned>(isa));
    }
  }

  void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
            const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool accumulate, float* c,
            std::int64_t ldc) const override {
    const OneThread one_thread;
    const auto letter = [](Transpose transpose) { return transpose == Transpose::yes ? 'T' : 'N'; };
    const dnnl_status_t status = dnnl_sgemm(letter(transpose_a), letter(transpose_b), m, n, k, 1.0F, a, lda,
                                            b, ldb, accumulate ? 1.0F : 0.0F, c, ldc);
    if (status != dnnl_success) {
      throw InternalError(fmt::format("oneDNN refused a {} x {} x {} matrix product (status {})", m, n, k,
                                      static_cast<int>(status)));
    }
  }
};

}  // namespace

bool onednn_is_built() noexcept {
  return true;
}

std::unique_ptr<Kernels> make_onednn_kernels() {
  return std::make_unique<OneDnnKernels>();
}

}  // namespace lockstep
