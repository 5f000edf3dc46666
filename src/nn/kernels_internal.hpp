#pragma once

#include <memory>

#include <lockstep/nn/kernels.hpp>

namespace lockstep {

std::unique_ptr<Kernels> make_eigen_kernels();

/// The build compiles kernels_onednn.cpp where the library was found, and kernels_no_onednn.cpp elsewhere.
bool onednn_is_built() noexcept;
std::unique_ptr<Kernels> make_onednn_kernels();

}  // namespace lockstep
