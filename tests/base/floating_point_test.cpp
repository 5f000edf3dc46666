#include <limits>

#include <doctest/doctest.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <lockstep/base/executor.hpp>
#include <lockstep/base/floating_point.hpp>

namespace lockstep {
namespace {

bool keeps_subnormals() {
  volatile float smallest = std::numeric_limits<float>::min();
  return smallest / 4 > 0;
}

}  // namespace

#if defined(__x86_64__)
TEST_CASE("subnormal numbers come back after something has switched them off") {
  constexpr unsigned kFlushToZero = 0x8040;  // both bits
  _mm_setcsr(_mm_getcsr() | kFlushToZero);
  CHECK_FALSE(keeps_subnormals());
  use_standard_floating_point();
  CHECK(keeps_subnormals());
}

TEST_CASE("a thread of the executor has standard arithmetic whatever its maker had") {
  constexpr unsigned kFlushToZero = 0x8040;
  _mm_setcsr(_mm_getcsr() | kFlushToZero);
  ThreadExecutor executor;
  bool kept = false;
  const auto worker = executor.start("arithmetic");
  worker->post([&] { kept = keeps_subnormals(); });
  worker->wait();
  use_standard_floating_point();
  CHECK(kept);
}
#endif

}  // namespace lockstep
