#pragma once

#include <cstdint>

namespace lockstep {

/// The most memory that this process ever had resident, in bytes, shared memory that it touched among it. 0
/// where the system does not say. Local.
std::int64_t peak_memory() noexcept;

}  // namespace lockstep
