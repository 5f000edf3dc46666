#pragma once

#include <lockstep/base/clock.hpp>

namespace lockstep {

/// Gives the core away for about so long, with a timer that is exact to microseconds. For waits that have
/// lasted too long to spin on: whoever sleeps is not in the way of the one it waits for, and the scheduler
/// lets it run at once when it wakes. Local; real time, whatever clock the program uses.
void doze(Seconds duration) noexcept;

}  // namespace lockstep
