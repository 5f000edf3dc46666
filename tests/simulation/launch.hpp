#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lockstep::test {

/// One run: a directory, and jobs that are launched in it one after the other until it is done.
struct Outcome {
  int launches = 0;
  std::string problem;      ///< empty: all held
  std::uint64_t trace = 0;  ///< of all that happened: the same for the same seed
};

/// Everything follows from `seed`. `verbose` tells each event.
Outcome simulate(std::uint64_t seed, bool verbose);

}  // namespace lockstep::test
