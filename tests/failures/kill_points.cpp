// Kills a job at every call that changes its folder, and looks at what is left.
//
//   kill_points [--size full] [--first]

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>

#include <lockstep/base/random.hpp>

#include "job.hpp"
#include "scenario.hpp"

namespace lockstep::test {
namespace {

std::string judge(const Traces& traces, const Ended& ended) {
  if (traces.faults.ended) return ended.signal == SIGKILL ? "" : "it outlived its end; ";
  // A job in which a call failed may end before the kill.
  return ended.exit_code == 0 || ended.exit_code == 74 ? "" : "it failed otherwise; ";
}

Totals sweep(int worker, int workers, const std::filesystem::path& scratch, bool full) {
  Sweep sweep(worker, workers, scratch);
  for (const Scenario& scenario : scenarios()) {
    const std::string calls = sweep.rehearse(scenario);
    const long count = static_cast<long>(calls.size());
    for (long at = 1; at <= count; ++at) {
      if (!sweep.mine()) continue;
      sweep.try_with(
          scenario, [&](Faults& faults) { faults.kill_at = at; }, judge);
    }
    for (long at = 1; at <= count; ++at) {
      if (calls[static_cast<std::size_t>(at - 1)] != 'w' || !sweep.mine()) continue;
      sweep.try_with(
          scenario,
          [&](Faults& faults) {
            faults.kind = Faults::tear;
            faults.at = at;
          },
          judge);
    }
    // A call fails, and a later one is the last.
    const long pairs = full ? 3 * count : count / 4;
    for (long i = 0; i < pairs; ++i) {
      if (!sweep.mine()) continue;
      const Random random(static_cast<std::uint64_t>(i), Purpose::test);
      const long at = 1 + random.below(0, static_cast<std::uint32_t>(count));
      sweep.try_with(
          scenario,
          [&](Faults& faults) {
            faults.kind = random.below(1, 2) == 0 ? Faults::fail : Faults::fail_late;
            faults.code = random.below(2, 2) == 0 ? EIO : ENOSPC;
            faults.forever = random.below(3, 4) == 0;
            faults.at = at;
            faults.kill_at = at + 1 + random.below(4, static_cast<std::uint32_t>(count - at + 1));
          },
          judge);
    }
  }
  return sweep.totals;
}

}  // namespace
}  // namespace lockstep::test

int main(int argc, char** argv) {
  using namespace lockstep::test;
  may_end_at_first(argc, argv);
  const bool full = is_full(argc, argv);
  const Totals totals = on_all_cores([&](int worker, int workers, const std::filesystem::path& scratch) {
    return sweep(worker, workers, scratch, full);
  });
  return report(totals, full ? 12000 : 5000);
}
