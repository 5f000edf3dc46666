#include <sys/resource.h>

#include <lockstep/base/peak_memory.hpp>

namespace lockstep {

std::int64_t peak_memory() noexcept {
  constexpr std::int64_t kUnit = 1024;  // Linux counts in KiB
  rusage usage{};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_maxrss * kUnit : 0;
}

}  // namespace lockstep
