#pragma once

#include <memory>

#include <lockstep/nn/convolution.hpp>
#include <lockstep/nn/kernels.hpp>

namespace lockstep {

/// A convolution for libraries that have products alone. `kernels` must outlive it.
std::unique_ptr<Convolution> convolution_by_products(const Kernels& kernels, const ConvolutionShape& shape);

}  // namespace lockstep
