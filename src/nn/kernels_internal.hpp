#pragma once

#include <memory>

#include <lockstep/nn/kernels.hpp>

namespace lockstep {

/// With `bf16` (which the CPU must have) products, and convolutions too, have operands in bf16.
std::unique_ptr<Kernels> make_eigen_kernels(bool bf16);

/// The build compiles kernels_onednn.cpp where the library was found, and kernels_no_onednn.cpp elsewhere.
bool onednn_is_built() noexcept;

/// Whether the library would use the CPU's instructions for bf16: it can be told not to (ONEDNN_MAX_CPU_ISA).
bool onednn_has_bf16() noexcept;
std::unique_ptr<Kernels> make_onednn_kernels(bool bf16);

}  // namespace lockstep
