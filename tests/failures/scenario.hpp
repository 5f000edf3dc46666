#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "job.hpp"

namespace lockstep::test {

/// A folder as a job may find it, and how the job is started.
struct Scenario {
  std::string name;
  JobOptions job;
  bool has_folder = true;
  bool damaged = false;     ///< the newest checkpoint is, and the state file is torn
  bool crashed = false;     ///< the last owner was killed: lock and temporary files are left
  std::int64_t floor = -1;  ///< newest step that was acknowledged before, and not given up by the user
  std::int64_t aside = -1;  ///< checkpoints above this step are set aside on request, and never deleted
};

/// Steps that the folders of scenarios hold; jobs go on to kLastStep.
inline constexpr std::int64_t kHeldStep = 3;
inline constexpr std::int64_t kLastStep = 5;

std::vector<Scenario> scenarios();

/// The folders from which scenarios start, made once.
class Templates {
 public:
  explicit Templates(const std::filesystem::path& where);

  /// A new folder as `scenario` finds it. An earlier one of that path is removed.
  void lay_out(const Scenario& scenario, const std::filesystem::path& folder) const;

 private:
  std::filesystem::path good_;
  std::filesystem::path crashed_;
};

/// Names in the folder that are damaged on purpose.
std::vector<std::string> planted(const Scenario& scenario);

/// Tries points of all scenarios, those of one worker among several, and tells what is wrong with each.
class Sweep {
 public:
  Sweep(int worker, int workers, const std::filesystem::path& scratch);

  /// The jobs run in `folder`; `before` each, and `after` the one to which something happened, something is
  /// to be done.
  Sweep(int worker, int workers, const std::filesystem::path& scratch, std::filesystem::path folder,
        std::function<void()> before, std::function<void()> after);

  /// A job that nothing happens to; returns its calls by their initials ("owfc...": open, write...). Also
  /// warms up what the processes of the points then share.
  std::string rehearse(const Scenario& scenario);

  /// True when the next point is this worker's.
  bool mine() { return number_++ % workers_ == worker_ && !is_enough(); }

  /// One point. `arm` says what is to happen; `judge` returns what else is wrong, or nothing.
  void try_with(const Scenario& scenario, const std::function<void(Faults&)>& arm,
                const std::function<std::string(const Traces&, const Ended&)>& judge);

  Totals totals;

 private:
  int worker_;
  int workers_;
  long number_ = 0;
  Templates templates_;
  std::filesystem::path folder_;
  std::function<void()> before_;
  std::function<void()> after_;
  SharedTraces traces_;
  std::vector<Digest> expected_ = expected_digests(kLastStep);
};

/// One job with `traces.faults` armed, what it leaves, and the next job. Returns what is wrong, or nothing.
/// `after`, when given, is called between the two jobs (a power cut remounts there).
std::string try_point(const Scenario& scenario, const std::filesystem::path& folder, Traces& traces,
                      const std::vector<Digest>& expected, Ended& ended,
                      const std::function<void()>& after = {});

}  // namespace lockstep::test
