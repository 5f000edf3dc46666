// Lets every call that changes a job's folder fail in every way, and looks at what the job says and leaves.
//
//   io_errors [--size full] [--first]

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <system_error>

#include "job.hpp"
#include "scenario.hpp"

namespace lockstep::test {
namespace {

constexpr std::array kCodes = {ENOSPC, EIO, EDQUOT, EROFS};

std::string judge(const Traces& traces, const Ended& ended) {
  const Faults& faults = traces.faults;
  if (ended.signal != 0) return "it crashed; ";
  std::string problems;
  if (ended.exit_code != 0 && ended.exit_code != 74) problems += "the exit code should be 0 or 74; ";
  if (ended.exit_code == 0 && traces.acknowledged != kLastStep) {
    problems += "it ended well without its last save; ";
  }
  if (!faults.struck) return problems;
  const char call = faults.initials[faults.at - 1];
  const bool told =
      std::string(traces.log).find(std::generic_category().message(faults.code)) != std::string::npos;
  // Linux has closed a file whose close was interrupted.
  const bool harmless =
      faults.kind == Faults::shorten || (faults.code == EINTR && (call == 'o' || call == 'w' || call == 'c'));
  if (harmless && (told || traces.failed_saves != 0 || ended.exit_code != 0)) {
    problems += "an interruption was taken for a failure; ";
  }
  // Summaries are no promise: what the close of an event file loses is not told.
  const bool promised = std::string_view(faults.what).find("close of /events") == std::string_view::npos;
  if (!harmless && promised && !told) problems += "nobody was told; ";
  return problems;
}

Totals sweep(int worker, int workers, const std::filesystem::path& scratch, bool full) {
  Sweep sweep(worker, workers, scratch);
  for (const Scenario& scenario : scenarios()) {
    const bool in_shards = scenario.job.shard_bytes == 1;
    const bool one_of_each = scenario.job.ranks == 1 || (scenario.job.ranks == 3 && scenario.crashed) ||
                             (scenario.job.ranks == 2 && in_shards && !scenario.has_folder);
    if (!full && !one_of_each) continue;
    const std::string calls = sweep.rehearse(scenario);
    for (std::size_t i = 0; i < calls.size(); ++i) {
      if (!sweep.mine()) continue;
      const auto fail = [&](int kind, int code, bool forever) {
        sweep.try_with(
            scenario,
            [&](Faults& faults) {
              faults.kind = kind;
              faults.at = static_cast<long>(i) + 1;
              faults.code = code;
              faults.forever = forever;
            },
            judge);
      };
      for (std::size_t k = 0; k < kCodes.size(); ++k) {
        // Each call meets each kind of failure; which code, changes from call to call.
        if (full || k == i % kCodes.size()) fail(Faults::fail, kCodes[k], false);
        if (full || k == (i + 1) % kCodes.size()) fail(Faults::fail, kCodes[k], true);
        if (full || k == (i + 2) % kCodes.size()) fail(Faults::fail_late, kCodes[k], false);
      }
      fail(Faults::fail, EINTR, false);
      if (calls[i] == 'w') fail(Faults::shorten, 0, true);
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
  return report(totals, 2000);
}
