#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/signals.hpp>

using namespace lockstep;

namespace {

int caught = 0;

void count(int) {
  ++caught;
}

}  // namespace

TEST_CASE("the first signal is kept, whatever comes after") {
  const ProcessSignals signals(ProcessSignals::stop_signals());
  CHECK_FALSE(signals.received().has_value());
  ::raise(SIGUSR1);
  CHECK(signals.received() == SIGUSR1);
  ::raise(SIGTERM);
  CHECK(signals.received() == SIGUSR1);
}

TEST_CASE("a new object has seen nothing, and the handlers of before come back after it") {
  struct sigaction own {};
  own.sa_handler = count;
  ::sigaction(SIGUSR2, &own, nullptr);
  {
    const ProcessSignals signals({SIGUSR2});
    CHECK_FALSE(signals.received().has_value());
    ::raise(SIGUSR2);
    CHECK(signals.received() == SIGUSR2);
    CHECK(caught == 0);
  }
  ::raise(SIGUSR2);
  CHECK(caught == 1);
}

TEST_CASE(
    "handlers run on a stack of their own, since generated kernels point the stack pointer into the heap") {
  const ProcessSignals signals({SIGUSR1});
  struct sigaction now {};
  REQUIRE(::sigaction(SIGUSR1, nullptr, &now) == 0);
  CHECK((now.sa_flags & SA_ONSTACK) != 0);
  stack_t stack{};
  REQUIRE(::sigaltstack(nullptr, &stack) == 0);
  CHECK((stack.ss_flags & SS_DISABLE) == 0);
}

TEST_CASE("a second object at the same time is refused") {
  const ProcessSignals signals({SIGUSR1});
  CHECK_THROWS_AS(ProcessSignals({SIGUSR2}), InternalError);
}

TEST_CASE("a second SIGINT ends the process at once") {
  const pid_t child = ::fork();
  if (child == 0) {
    const ProcessSignals signals({SIGUSR1, SIGINT});
    ::raise(SIGUSR1);
    ::raise(SIGINT);  // the first: soon, whatever came before
    if (signals.received() != SIGUSR1) ::_exit(1);
    ::raise(SIGINT);
    ::_exit(2);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 128 + SIGINT);
}

TEST_CASE("fake signals say what they were told, and no signals nothing") {
  FakeSignals fake;
  CHECK_FALSE(fake.received().has_value());
  fake.raise(SIGTERM);
  CHECK(fake.received() == SIGTERM);
  CHECK_FALSE(NoSignals().received().has_value());
}
