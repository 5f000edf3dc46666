#include <lockstep/base/error.hpp>

#include "kernels_internal.hpp"

namespace lockstep {

bool onednn_is_built() noexcept {
  return false;
}

bool onednn_has_bf16() noexcept {
  return false;
}

std::unique_ptr<Kernels> make_onednn_kernels(bool) {
  throw UsageError(
      "this build has no oneDNN kernels; choose eigen, or install libdnnl-dev and configure again");
}

}  // namespace lockstep
