#include <sys/sysinfo.h>

#include <lockstep/base/installed_memory.hpp>

namespace lockstep {

std::int64_t installed_memory() noexcept {
  struct sysinfo info {};
  if (::sysinfo(&info) != 0) return 0;
  return static_cast<std::int64_t>((info.totalram + info.totalswap) * info.mem_unit);
}

}  // namespace lockstep
