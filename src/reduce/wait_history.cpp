#include <algorithm>

#include <lockstep/reduce/wait_history.hpp>

namespace lockstep {

void WaitHistory::add(Seconds waited) {
  waits_[static_cast<std::size_t>(added_++) % waits_.size()] = static_cast<float>(waited.count());
}

WaitSummary WaitHistory::summary() const {
  WaitSummary result;
  result.steps = std::min(added_, static_cast<std::int64_t>(waits_.size()));
  for (std::size_t i = 0; i < static_cast<std::size_t>(result.steps); ++i) {
    const double wait = waits_[i];
    result.mean += wait / static_cast<double>(result.steps);
    result.max = std::max(result.max, wait);
  }
  return result;
}

std::vector<WaitSummary> gather(const Communicator& comm, const WaitHistory& mine) {
  return comm.all_gather(mine.summary());
}

}  // namespace lockstep
