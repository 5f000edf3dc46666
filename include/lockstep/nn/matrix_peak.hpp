#pragma once

#include <lockstep/base/clock.hpp>
#include <lockstep/nn/kernels.hpp>

namespace lockstep {

/// Multiplications and additions a second of the calling thread in the best of a few products of 1024 x 1024:
/// what other work can be measured by. Takes some 0.1 s. Local.
double matrix_peak(const Kernels& kernels, Clock& clock);

}  // namespace lockstep
