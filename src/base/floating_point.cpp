#include <lockstep/base/floating_point.hpp>

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace lockstep {

void use_standard_floating_point() noexcept {
#if defined(__x86_64__)
  constexpr unsigned kAllMaskedToNearest = 0x1f80;  // the value at the start of every process
  _mm_setcsr(kAllMaskedToNearest);
#else
  std::fesetenv(FE_DFL_ENV);
#endif
}

}  // namespace lockstep
