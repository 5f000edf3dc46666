#include <array>
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <pthread.h>
#include <signal.h>

#include <lockstep/base/executor.hpp>

using namespace lockstep;

namespace {

/// Both executors must keep these promises.
template <class Check>
void with_each_executor(Check check) {
  ThreadExecutor threads;
  InlineExecutor inline_executor;
  SUBCASE("with threads") {
    check(threads);
  }
  SUBCASE("inline") {
    check(inline_executor);
  }
}

}  // namespace

TEST_CASE("tasks run in the order they were posted, and wait returns after the last") {
  with_each_executor([](Executor& executor) {
    const auto worker = executor.start("test");
    std::vector<int> order;
    for (int i = 0; i < 1000; ++i) worker->post([&order, i] { order.push_back(i); });
    worker->wait();
    CHECK(worker->idle());
    REQUIRE(order.size() == 1000);
    for (int i = 0; i < 1000; ++i) CHECK(order[static_cast<std::size_t>(i)] == i);
    worker->wait();  // nothing to wait for
  });
}

TEST_CASE("wait rethrows the first exception of a task once, and later tasks have run") {
  with_each_executor([](Executor& executor) {
    const auto worker = executor.start("test");
    bool later = false;
    worker->post([] { throw std::runtime_error("first"); });
    worker->post([] { throw std::runtime_error("second"); });
    worker->post([&later] { later = true; });
    CHECK_THROWS_WITH_AS(worker->wait(), "first", std::runtime_error);
    CHECK(later);
    worker->wait();
  });
}

TEST_CASE("a worker that goes away finishes what was posted") {
  with_each_executor([](Executor& executor) {
    int done = 0;
    {
      const auto worker = executor.start("test");
      for (int i = 0; i < 100; ++i) worker->post([&done] { ++done; });
      worker->post([] { throw std::runtime_error("nobody sees this"); });
    }
    CHECK(done == 100);
  });
}

TEST_CASE("a task may post another") {
  ThreadExecutor threads;
  std::atomic<int> done{0};
  {
    const auto worker = threads.start("test");
    worker->post([&] {
      worker->post([&] { ++done; });
      ++done;
    });
    worker->wait();
    CHECK(done == 2);
  }
}

TEST_CASE("a worker is not idle while a task runs") {
  ThreadExecutor threads;
  const auto worker = threads.start("test");
  CHECK(worker->idle());
  std::atomic<bool> go{false};
  worker->post([&go] { go.wait(false); });
  CHECK_FALSE(worker->idle());
  go = true;
  go.notify_one();
  worker->wait();
  CHECK(worker->idle());
}

TEST_CASE("threads have a name and receive no signals") {
  ThreadExecutor threads;
  const auto worker = threads.start("a rather long name");
  std::array<char, 16> name{};
  sigset_t blocked;
  sigemptyset(&blocked);
  worker->post([] {});
  worker->wait();  // the name is given from outside, just after the start
  worker->post([&] {
    pthread_getname_np(pthread_self(), name.data(), name.size());
    pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
  });
  worker->wait();
  CHECK(std::string(name.data()) == "a rather long n");
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2}) CHECK(sigismember(&blocked, signal) == 1);
  sigset_t own;
  pthread_sigmask(SIG_SETMASK, nullptr, &own);
  CHECK(sigismember(&own, SIGTERM) == 0);
}

TEST_CASE("a periodic task runs until it is destroyed, at once and not after its interval") {
  ThreadExecutor threads;
  std::atomic<int> count{0};
  auto periodic = threads.every("tick", Seconds(0.001), [&] {
    ++count;
    count.notify_one();
  });
  while (count < 3) count.wait(count);
  periodic.reset();
  const int after = count;
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(count == after);

  SystemClock clock;
  auto slow = threads.every("slow", Seconds(1000), [] {});
  const Seconds before = clock.now();
  slow.reset();
  CHECK(clock.now() - before < Seconds(5));
}

TEST_CASE("an inline executor never runs a periodic task") {
  InlineExecutor executor;
  int count = 0;
  executor.every("tick", Seconds(0), [&] { ++count; });
  CHECK(count == 0);
}
