#pragma once

#include <functional>
#include <memory>
#include <string>

#include <lockstep/base/clock.hpp>
#include <lockstep/mpi/communicator.hpp>

namespace lockstep::simulated {

/// Simulated ranks: neighbours on one host, hosts in the order of the numbers in their names.
struct Ranks {
  std::string platform;  ///< a file of SimGrid's
  int ranks = 4;
  int per_node = 1;
  std::function<void()> ready = {};  ///< called before the first rank runs

  /// Words of the command line: --platform FILE --ranks N --per_node N. Returns how many words were
  /// understood: 0 or 2.
  int parse_word(int count, char** words);

  /// Runs `body(rank, world)` for each rank to its end. Once a process. Throws UsageError where the platform
  /// has too few hosts.
  void run(const std::function<void(int rank, const Communicator& world)>& body) const;
};

/// Simulated time. Of the process: one for all ranks.
std::shared_ptr<Clock> simulated_clock();

/// Simulated time passes for the calling rank.
void compute_for(Seconds duration);

}  // namespace lockstep::simulated
