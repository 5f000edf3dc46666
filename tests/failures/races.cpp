// Two jobs for one folder, and jobs that stand still while another takes their folder.
//
//   races [--size full] [--first]
//
// A race: two processes start a session on one folder at the same time; one trains, the other is refused and
// has written nothing. A nap: a job is stopped at one of its calls; a job of another host takes over, and
// then the first one wakes.

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/checkpoint/lock.hpp>
#include <lockstep/checkpoint/reader.hpp>

#include "job.hpp"
#include "scenario.hpp"

namespace lockstep::test {
namespace {

/// This process, said to be on another host.
class Elsewhere final : public ProcessIdentity {
 public:
  std::string host() const override { return "elsewhere"; }
  std::string boot_id() const override { return "another"; }
  std::int64_t pid() const override { return here_.pid(); }
  std::optional<std::uint64_t> start_time(std::int64_t pid) const override { return here_.start_time(pid); }
  std::string job_id() const override { return ""; }
  std::uint64_t nonce() override { return here_.nonce(); }

 private:
  SystemIdentity here_;
};

/// Stands still while a newcomer has the folder for itself, however long that is not given the processor:
/// what the other one waits for at most is then no question of the machine's speed.
class WaitingClock final : public Clock {
 public:
  explicit WaitingClock(std::filesystem::path folder) : folder_(std::move(folder)) {}

  Seconds now() const override { return clock_.now(); }
  double wall_seconds() const override { return clock_.wall_seconds(); }
  void sleep(Seconds duration) override {
    ::sched_yield();
    const int fd = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool free = fd < 0 || ::flock(fd, LOCK_SH | LOCK_NB) == 0;
    ::close(fd);
    if (free) clock_.sleep(duration);  // the wait that is tested, at its own pace
  }

 private:
  FakeClock clock_;
  std::filesystem::path folder_;
};

/// What two processes tell each other.
struct Meeting {
  std::atomic<int> ready = 0;
  std::atomic<int> refused = 0;
};

class Races {
 public:
  explicit Races(const std::filesystem::path& scratch) : templates_(scratch), folder_(scratch / "run") {
    void* memory =
        ::mmap(nullptr, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    meeting_ = new (memory) Meeting();
    for (const bool stopped : {true, false}) {
      Scenario scenario;
      scenario.crashed = stopped;
      scenario.floor = kHeldStep;
      starts_[stopped ? 1 : 0] = scenario;
    }
    starts_[2].has_folder = false;
  }

  void race(long number) {
    ++totals.points;
    const Scenario& start = starts_[static_cast<std::size_t>(number) % 3];
    templates_.lay_out(start, folder_);
    meeting_->ready = 0;
    meeting_->refused = 0;
    pid_t jobs[2];
    for (int i = 0; i < 2; ++i) {
      traces_[i]->reset();
      std::snprintf(traces_[i]->faults.folder, sizeof traces_[i]->faults.folder, "%s", folder_.c_str());
      jobs[i] = start_process([&, i] {
        lockstep_set_faults(&traces_[i]->faults);
        // Both leave together, one a little late, so that they meet at every place.
        ++meeting_->ready;
        while (meeting_->ready < 2) ::sched_yield();
        for (long spin = 0; spin < (i == 0 ? 0 : (number * 7919) % 200'000); ++spin) {
          std::atomic_signal_fence(std::memory_order_seq_cst);
        }
        JobOptions job{.folder = folder_, .last_step = kHeldStep + 1};
        job.clock = std::make_shared<WaitingClock>(folder_);
        // Who is in waits for the other to be turned away.
        job.in_step = [&](std::int64_t) {
          while (meeting_->refused == 0) ::sched_yield();
        };
        const int code = run_job(job, *traces_[i]);
        if (code != 0) ++meeting_->refused;
        return code;
      });
    }
    const int codes[2] = {wait_for(jobs[0]), wait_for(jobs[1])};
    std::string problems;
    const int winner = codes[0] == 0 ? 0 : 1;
    const int loser = 1 - winner;
    constexpr int kRefused = 78;
    if (codes[winner] != 0 || codes[loser] != kRefused) {
      problems += fmt::format("they ended with {} and {}; ", codes[0], codes[1]);
    }
    if (traces_[loser]->faults.foreign != 0) problems += "the loser has written; ";
    if (traces_[loser]->faults.bytes != 0) problems += "the loser has written bytes; ";
    problems += problems_of(folder_, expected_, kHeldStep + 1);
    problems += leftovers_in(folder_);
    if (!problems.empty()) {
      ++totals.problems;
      told_problem();
      std::printf("race %ld: %s\n  %s\n  %s\n", number, problems.c_str(), traces_[0]->log, traces_[1]->log);
    }
  }

  /// False when the job has fewer calls than that.
  bool nap(long at) {
    templates_.lay_out(starts_[0], folder_);
    Traces& first = *traces_[0];
    Traces& second = *traces_[1];
    first.reset();
    second.reset();
    std::snprintf(first.faults.folder, sizeof first.faults.folder, "%s", folder_.c_str());
    first.faults.kind = Faults::stop;
    first.faults.at = at;
    const pid_t sleeper = start_process([&] {
      lockstep_set_faults(&first.faults);
      return run_job({.folder = folder_, .last_step = kLastStep}, first);
    });
    int status = 0;
    ::waitpid(sleeper, &status, WUNTRACED);
    if (!WIFSTOPPED(status)) return false;
    if (!lock_now() && first.acknowledged < 0) {
      // It had nothing yet that could be taken from it.
      ::kill(sleeper, SIGKILL);
      ::kill(sleeper, SIGCONT);
      wait_for(sleeper);
      return true;
    }
    ++totals.points;
    const long acknowledged = first.acknowledged;

    // 30 s without a heartbeat pass at once: the clock of this job is a false one. It goes on where the
    // newest checkpoint is and stays.
    const pid_t heir = start_process([&] {
      return run_job({.folder = folder_,
                      .last_step = kLastStep + 1,
                      .identity = std::make_shared<Elsewhere>(),
                      .in_step =
                          [once = false](std::int64_t) mutable {
                            if (!std::exchange(once, true)) ::raise(SIGSTOP);
                          }},
                     second);
    });
    int heir_status = 0;
    ::waitpid(heir, &heir_status, WUNTRACED);
    std::string problems;
    if (!WIFSTOPPED(heir_status)) problems += "no other job could take over; ";
    const auto before = lock_now();
    const long known = std::max({acknowledged, second.restored.load(), second.acknowledged.load()});
    ::kill(sleeper, SIGCONT);
    const int woken = wait_for(sleeper);
    if (lock_now() != before) problems += "the lock changed hands; ";
    if (first.acknowledged > known) {
      problems += "it acknowledged what the other does not know; ";
    }
    if (woken != 0 && woken != 74 && woken != 78)
      problems += fmt::format("it woke and ended with {}; ", woken);
    if (WIFSTOPPED(heir_status)) {
      ::kill(heir, SIGCONT);
      if (wait_for(heir) != 0) problems += "the other job failed; ";
    }
    if (second.acknowledged < kLastStep) problems += "the other job saved nothing; ";

    // What the sleeper acknowledged before it slept is in what the heir went on from; what comes after the
    // heir's start counts for nothing.
    SharedTraces third;
    const int code = run_job({.folder = folder_, .last_step = kLastStep + 1}, *third);
    if (code != 0 || third->restored != kLastStep + 1) {
      problems += fmt::format("the next job ended with {}, from step {}; ", code, third->restored.load());
    }
    if (expected_.back().hex() != third->digest) problems += "the next job came to another result; ";
    if (!problems.empty()) {
      ++totals.problems;
      told_problem();
      std::printf("nap at %s: %s\n  %s\n  %s\n  %s\n", first.faults.what, problems.c_str(), first.log,
                  second.log, third->log);
    }
    return true;
  }

  Totals totals;

 private:
  template <class Work>
  static pid_t start_process(Work work) {
    const pid_t child = ::fork();
    if (child != 0) return child;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    constexpr unsigned kLimit = 20;
    ::alarm(kLimit);
    ::_exit(work());
  }

  /// The exit code, or the signal and 1000.
  static int wait_for(pid_t child) {
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

  std::optional<LockHolder> lock_now() const { return read_lock(*PosixFileSystem().open_directory(folder_)); }

  Templates templates_;
  std::filesystem::path folder_;
  Meeting* meeting_;
  Scenario starts_[3];
  SharedTraces traces_[2];
  std::vector<Digest> expected_ = expected_digests(kLastStep + 1);
};

}  // namespace
}  // namespace lockstep::test

int main(int argc, char** argv) {
  using namespace lockstep::test;
  may_end_at_first(argc, argv);
  const long races = is_full(argc, argv) ? 20'000 : 1000;
  const Totals naps = on_all_cores([&](int worker, int workers, const std::filesystem::path& scratch) {
    Races all(scratch);
    for (long at = 1 + worker; !is_enough() && all.nap(at); at += workers) {
    }
    return all.totals;
  });
  std::printf("%ld naps\n", naps.points);
  std::fflush(stdout);  // or the processes of the next part print it, too
  Totals totals = on_all_cores([&](int worker, int workers, const std::filesystem::path& scratch) {
    Races all(scratch);
    // Where two are let in, each race ends by its limit; a few show it.
    constexpr long kEnough = 3;
    for (long i = worker; i < races && all.totals.problems < kEnough && !is_enough(); i += workers)
      all.race(i);
    return all.totals;
  });
  totals.points += naps.points;
  totals.problems += naps.problems;
  constexpr long kNaps = 50;
  return report(totals, races + kNaps);
}
