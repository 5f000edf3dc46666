#pragma once

#include <memory>

#include <lockstep/nn/kernels.hpp>

namespace lockstep {

/// The matrix work of `kernels`, which are those of fp32, on operands that are rounded to bf16 before: what
/// --precision bf16 is on a CPU that has no products in bf16.
std::unique_ptr<Kernels> emulate_bf16(std::unique_ptr<Kernels> kernels);

}  // namespace lockstep
