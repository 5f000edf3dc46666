#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lockstep/base/process.hpp>
#include <lockstep/base/process_watch.hpp>

using namespace lockstep;

namespace {

/// A child that sleeps until it is killed.
class Sleeper {
 public:
  Sleeper() : pid_(::fork()) {
    if (pid_ == 0) {
      for (;;) ::pause();
    }
  }
  ~Sleeper() { reap(); }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;

  ProcessWatch::Process process() const { return {pid_, SystemIdentity().start_time(pid_).value()}; }

  /// Returns when it is dead, a zombie.
  void kill() const {
    ::kill(pid_, SIGKILL);
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT);
  }
  void reap() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  pid_t pid_;
};

}  // namespace

TEST_CASE("a process that is killed is noticed, before and after its parent has collected it") {
  Sleeper first;
  Sleeper second;
  const ProcessWatch watch({first.process(), second.process()});
  CHECK_FALSE(watch.ended());
  second.kill();
  CHECK(watch.ended() == 1U);
  second.reap();
  CHECK(watch.ended() == 1U);
}

TEST_CASE("a stopped process has not ended") {
  Sleeper sleeper;
  const ProcessWatch watch({sleeper.process()});
  ::kill(static_cast<pid_t>(sleeper.process().pid), SIGSTOP);
  CHECK_FALSE(watch.ended());
}

TEST_CASE("a process is there, stopped or has ended") {
  using State = ProcessWatch::State;
  Sleeper sleeper;
  const auto process = sleeper.process();
  const auto pid = static_cast<pid_t>(process.pid);
  siginfo_t info{};
  CHECK(ProcessWatch::state(process) == State::there);
  ::kill(pid, SIGSTOP);
  ::waitid(P_PID, static_cast<id_t>(pid), &info, WSTOPPED);
  CHECK(ProcessWatch::state(process) == State::stopped);
  ::kill(pid, SIGCONT);
  ::waitid(P_PID, static_cast<id_t>(pid), &info, WCONTINUED);
  CHECK(ProcessWatch::state(process) == State::there);
  auto other = process;
  ++other.start_time;
  CHECK(ProcessWatch::state(other) == State::ended);
  sleeper.kill();
  CHECK(ProcessWatch::state(process) == State::ended);
}

TEST_CASE("what is gone already has ended: another start time, or no such process") {
  Sleeper sleeper;
  auto other = sleeper.process();
  ++other.start_time;
  const auto gone = sleeper.process();
  CHECK(ProcessWatch({gone, other}).ended() == 1U);
  sleeper.reap();
  CHECK(ProcessWatch({gone}).ended() == 0U);
  CHECK_FALSE(ProcessWatch({}).ended());
}

TEST_CASE("processes of one system and pid namespace have one scope") {
  CHECK_FALSE(ProcessWatch::scope().empty());
  CHECK(ProcessWatch::scope() == ProcessWatch::scope());
}
