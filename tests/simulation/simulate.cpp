// Simulated jobs with faults: whole runs of the real session, hooks, saver and lock, each from one seed. See
// docs/simulation.md.
//
//   simulate [--jobs N] [--first SEED] [--problems N]   runs from SEED on, until N jobs were launched or N
//   runs are broken simulate --seed SEED                    one run, and everything that happens in it
//   simulate --planted all [--jobs N]       each fault that is planted in this program is found within N jobs
//   simulate --planted NAME --seed SEED     one run with one of them

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include <malloc.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launch.hpp"
#include "planted.hpp"

namespace lockstep::test {
namespace {

struct Options {
  std::uint64_t first = 1;
  long jobs = 2000;
  long problems = 10;
  bool one = false;
  std::string planted;
  std::string program;
};

struct Total {
  long jobs = 0;
  std::uint64_t runs = 0;
  long broken = 0;
};

int show(const Options& options) {
  const Outcome outcome = simulate(options.first, true);
  std::printf("%d launches; %s\n", outcome.launches,
              outcome.problem.empty() ? "all held" : outcome.problem.c_str());
  return outcome.problem.empty() ? EXIT_SUCCESS : EXIT_FAILURE;
}

Total run(const Options& options, long problems, const std::string& more) {
  Total total;
  for (std::uint64_t seed = options.first; total.jobs < options.jobs && total.broken < problems; ++seed) {
    const Outcome outcome = simulate(seed, false);
    total.jobs += outcome.launches;
    ++total.runs;
    if (outcome.problem.empty()) continue;
    ++total.broken;
    std::printf("seed %llu: %s\n  replay: %s%s --seed %llu\n", static_cast<unsigned long long>(seed),
                outcome.problem.c_str(), options.program.c_str(), more.c_str(),
                static_cast<unsigned long long>(seed));
  }
  return total;
}

/// One seed is one run: the same again.
bool replays() {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const Outcome once = simulate(seed, false);
    const Outcome again = simulate(seed, false);
    if (once.trace != again.trace || once.launches != again.launches) {
      std::printf("seed %llu is not the same run twice\n", static_cast<unsigned long long>(seed));
      return false;
    }
  }
  return true;
}

/// Each in a process of its own: what a fault breaks stays there.
int find_planted(const Options& options) {
  int missed = 0;
  for (std::size_t i = 0; i < planted_faults.size(); ++i) {
    const std::string& name = planted_faults[i];
    std::printf("%s: ", name.c_str());
    std::fflush(stdout);
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      constexpr unsigned kLimit =
          120;  // seconds; a fault that makes the simulation itself endless is not found
      ::alarm(kLimit);
      planted_now = static_cast<int>(i);
      const Total total = run(options, 1, " --planted " + name);
      std::fflush(stdout);
      ::_exit(total.broken > 0 ? 1 : 0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 1) continue;
    ++missed;
    std::printf("NOT FOUND (%s %d)\n", WIFSIGNALED(status) ? "signal" : "exit status",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
  }
  std::printf("%zu planted faults, %d not found\n", planted_faults.size(), missed);
  return missed == 0 && !planted_faults.empty() ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace
}  // namespace lockstep::test

int main(int argc, char** argv) {
  using namespace lockstep::test;
  Options options;
  options.program = argv[0];
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string word = argv[i];
    const char* value = argv[i + 1];
    if (word == "--jobs") options.jobs = std::strtol(value, nullptr, 10);
    if (word == "--problems") options.problems = std::strtol(value, nullptr, 10);
    if (word == "--first" || word == "--seed") options.first = std::strtoull(value, nullptr, 10);
    if (word == "--seed") options.one = true;
    if (word == "--planted") options.planted = value;
  }
  // Stacks and the like are kept, so that their pages are touched once.
  ::mallopt(M_MMAP_THRESHOLD, 256 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 512 << 20);
  if (options.planted == "all") return find_planted(options);
  if (!options.planted.empty()) {
    const auto found = std::find(planted_faults.begin(), planted_faults.end(), options.planted);
    if (found == planted_faults.end()) {
      std::printf("no fault '%s' is planted in this program\n", options.planted.c_str());
      return EXIT_FAILURE;
    }
    planted_now = static_cast<int>(found - planted_faults.begin());
  }
  if (options.one) return show(options);
  if (!replays()) return EXIT_FAILURE;
  const std::clock_t began = std::clock();
  const Total total = run(options, options.problems, "");
  const double seconds = static_cast<double>(std::clock() - began) / CLOCKS_PER_SEC;
  std::printf("%ld jobs in %llu runs, %ld broken, %.0f jobs a second of one core\n", total.jobs,
              static_cast<unsigned long long>(total.runs), total.broken,
              static_cast<double>(total.jobs) / seconds);
  return total.broken == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
