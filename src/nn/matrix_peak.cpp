#include <algorithm>
#include <cstddef>
#include <vector>

#include <lockstep/nn/matrix_peak.hpp>

namespace lockstep {

double matrix_peak(const Kernels& kernels, Clock& clock) {
  constexpr std::int64_t kSide = 1024;
  constexpr int kProducts = 4;  // the first makes the rest warm
  constexpr auto kElements = static_cast<std::size_t>(kSide * kSide);
  const std::vector<float> a(kElements, 1.0F);
  const std::vector<float> b(kElements, 0.5F);
  std::vector<float> c(kElements);
  double best = 0;
  for (int i = 0; i < kProducts; ++i) {
    const Seconds begin = clock.now();
    kernels.gemm(Transpose::no, Transpose::no, kSide, kSide, kSide, a.data(), kSide, b.data(), kSide, false,
                 c.data(), kSide);
    const double seconds = std::max((clock.now() - begin).count(), 1e-9);
    best = std::max(best, 2.0 * kSide * kSide * kSide / seconds);
  }
  return best;
}

}  // namespace lockstep
