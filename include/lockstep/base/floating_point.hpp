#pragma once

namespace lockstep {

/// Puts the calling thread into the arithmetic of IEEE 754: rounding to nearest, subnormal numbers kept, no
/// traps. A library that was built for speed may have switched subnormal numbers off for the whole process
/// when it was loaded, and results would then depend on what else is linked. Local.
void use_standard_floating_point() noexcept;

}  // namespace lockstep
