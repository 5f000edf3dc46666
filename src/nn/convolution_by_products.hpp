#pragma once

#include <memory>

#include <lockstep/nn/convolution.hpp>
#include <lockstep/nn/kernels.hpp>

namespace lockstep {

/// Whether each output pixel is a product of one input pixel with the weights, and all inputs are used.
bool is_pointwise(const ConvolutionShape& shape) noexcept;

/// A convolution for libraries that have products alone. `kernels` must outlive it.
std::unique_ptr<Convolution> convolution_by_products(const Kernels& kernels, const ConvolutionShape& shape);

}  // namespace lockstep
