#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/digest.hpp>
#include <lockstep/base/process.hpp>

#include "shim.hpp"

namespace lockstep::test {

/// What a job leaves for those that outlive it: lies in memory that processes share.
struct Traces {
  Faults faults;
  std::atomic<long> acknowledged = -1;  ///< newest step that a save was acknowledged for
  std::atomic<long> restored = -1;      ///< step from which it went on
  std::atomic<long> failed_saves = 0;
  std::atomic<bool> complained = false;  ///< a warning or an error was logged
  char log[8192] = "";                   ///< warnings and errors
  char digest[40] = "";                  ///< of the final state

  void reset();
};

/// Traces in memory that stays shared across fork.
class SharedTraces {
 public:
  SharedTraces();
  ~SharedTraces();
  SharedTraces(const SharedTraces&) = delete;
  SharedTraces& operator=(const SharedTraces&) = delete;
  Traces* operator->() const { return traces_; }
  Traces& operator*() const { return *traces_; }

 private:
  Traces* traces_;
};

struct JobOptions {
  std::filesystem::path folder = {};
  int ranks = 1;
  std::int64_t last_step = 5;
  int max_to_keep = 2;
  std::uint64_t shard_bytes = std::uint64_t{1} << 30;  ///< 1: every rank writes a shard
  bool fresh = false;
  std::string restore_from = {};
  bool stop_on_save_failure = false;
  std::shared_ptr<ProcessIdentity> identity = {};       ///< null: this process
  std::shared_ptr<Clock> clock = {};                    ///< null: one on which nothing takes time
  std::function<void(std::int64_t step)> in_step = {};  ///< called by the chief
};

/// A small training that saves after every step, by the real session over simulated ranks, on a real folder.
/// Returns the exit code that a program would end with. The state after a step is the same on any number of
/// ranks.
int run_job(const JobOptions& options, Traces& traces);

/// The digest of the state after each step, from a run without a folder.
std::vector<Digest> expected_digests(std::int64_t last_step);

/// How a process ended.
struct Ended {
  int exit_code = -1;  ///< or
  int signal = 0;
  bool hung = false;
};

/// Runs `work` in a process of its own, and ends it after `limit_seconds`.
Ended in_child(const std::function<int()>& work, int limit_seconds = 20);

/// What is wrong with a folder in which jobs have run; empty: nothing.
///
/// Every file under the final name of a checkpoint verifies and holds the state of its step, but those named
/// in `planted`; and the newest of them is at least `acknowledged`.
std::string problems_of(const std::filesystem::path& folder, const std::vector<Digest>& expected,
                        std::int64_t acknowledged, const std::vector<std::string>& planted = {});

/// Names that a job that ended well must not leave behind.
std::string leftovers_in(const std::filesystem::path& folder);

/// Checkpoints that were set aside although nobody asked for it and only one job at a time was there.
std::string superseded_in(const std::filesystem::path& folder);

/// Where the folders of a worker go: memory where there is some.
std::filesystem::path make_scratch();

/// Shares points 0, 1, 2... among processes, one a core, until `point` says that there are no more in its
/// part. Each process gets its own scratch folder. Sums what they return; exits when one failed.
struct Totals {
  long points = 0;
  long problems = 0;
  long other[6] = {};
};
Totals on_all_cores(const std::function<Totals(int worker, int workers, const std::filesystem::path&)>& work);

/// Prints the last line of an instrument, "N cases, N problems", and returns its exit code. Fewer cases than
/// `at_least` are a failure, too: nothing was tried.
int report(const Totals& totals, long at_least);

/// "--size full" among the arguments.
bool is_full(int argc, char** argv);

/// With "--first" among its arguments an instrument ends at its first problem, in whichever process: each
/// asks before a case. Called before processes are shared out.
void may_end_at_first(int argc, char** argv);

/// A problem was told.
void told_problem() noexcept;

/// True once that is enough.
bool is_enough() noexcept;

}  // namespace lockstep::test
