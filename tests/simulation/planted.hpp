#pragma once

#include <string>
#include <vector>

namespace lockstep::test {

/// Names of the faults that were planted in this program, none where its sources are as they are.
extern const std::vector<std::string> planted_faults;

/// The one that is switched on, or -1.
inline int planted_now = -1;

}  // namespace lockstep::test
