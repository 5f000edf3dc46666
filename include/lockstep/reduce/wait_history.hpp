#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <lockstep/base/clock.hpp>
#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// How long one rank waited for others, in seconds a step, over the last steps.
struct WaitSummary {
  std::int64_t steps = 0;
  double mean = 0;
  double max = 0;
};

/// The waits of this rank's last steps. Each rank keeps its own; no message tells others before `gather`.
class WaitHistory {
 public:
  void add(Seconds waited);
  WaitSummary summary() const;

 private:
  std::array<float, 1024> waits_{};
  std::int64_t added_ = 0;
};

/// The summaries of all ranks, in their order, on every rank. Who waits least keeps the others waiting.
/// Collective: one gather.
std::vector<WaitSummary> gather(const Communicator& comm, const WaitHistory& mine);

}  // namespace lockstep
