#pragma once

#include <cstdint>

namespace lockstep {

/// What programs of this machine can have in all: its memory and its swap space, in bytes. 0 where the system
/// does not say. Local.
std::int64_t installed_memory() noexcept;

}  // namespace lockstep
