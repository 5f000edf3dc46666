#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <lockstep/base/clock.hpp>
#include <lockstep/reduce/tally.hpp>
#include <lockstep/reduce/topology.hpp>

namespace lockstep {

/// Who keeps the others waiting: collects what the tallies of some steps tell about the rank that came last,
/// and says in words whether one rank is slow in most steps, or was once. Local; the same on all ranks.
class ArrivalLag {
 public:
  /// Room for this many steps; of more, the latest count.
  explicit ArrivalLag(std::size_t steps = 1024) { lags_.reserve(steps); }

  /// `step` is the one whose tally this is. The tally tells of the step before it.
  void add(std::int64_t step, const Tally& tally);

  /// Seconds that a rank waited for the last one, mean over the steps collected.
  double mean() const;

  /// One sentence, or empty when waiting took less than a tenth of `elapsed`, the time of these steps.
  std::string report(Seconds elapsed, const Topology& topology) const;

  void clear() {
    lags_.clear();
    next_ = 0;
  }

 private:
  struct Lag {
    std::int64_t step;
    std::int32_t rank;
    std::int32_t node;
    double seconds;
  };
  std::vector<Lag> lags_;
  std::size_t next_ = 0;  ///< to be overwritten, once there is no more room
};

}  // namespace lockstep
