#include <atomic>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/end_of_input.hpp>
#include <lockstep/session/coordinator.hpp>
#include <lockstep/session/looper_thread.hpp>

namespace lockstep {
namespace {

/// Time passes in sleeps alone, and at given times something happens.
class ScriptedClock final : public Clock {
 public:
  void at(double time, std::function<void()> event) { events_.emplace_back(time, std::move(event)); }
  Seconds now() const override { return Seconds{time_}; }
  double wall_seconds() const override { return time_; }
  void sleep(Seconds duration) override {
    const double before = time_;
    time_ += duration.count();
    for (const auto& [time, event] : events_) {
      if (time > before && time <= time_) event();
    }
  }

 private:
  double time_ = 0;
  std::vector<std::pair<double, std::function<void()>>> events_;
};

/// What `work` throws; empty when nothing.
template <class Thrown, class Work>
std::string thrown(Work&& work) {
  try {
    work();
  } catch (const Thrown& error) {
    return error.what();
  }
  return "";
}

/// A thread that is registered, does its work and ends.
std::unique_ptr<Worker> start(Executor& executor, Coordinator coordinator, const std::string& name,
                              std::function<void()> work) {
  auto worker = executor.start(name);
  worker->post([registration = std::make_shared<Coordinator::Registration>(coordinator.register_thread(name)),
                work = std::move(work)] {
    work();
    registration->ended();
  });
  return worker;
}

}  // namespace

// TF: Coordinator.testStopAPI
TEST_CASE("a stop that was asked for is seen, waited for and forgotten") {
  Coordinator coordinator;
  CHECK(!coordinator.should_stop());
  CHECK(!coordinator.wait_for_stop(Seconds{0.001}));
  coordinator.request_stop("enough");
  coordinator.request_stop("more than enough");
  CHECK(coordinator.should_stop());
  CHECK(coordinator.wait_for_stop(Seconds{0.001}));
  CHECK(coordinator.wait_for_stop());
  CHECK(coordinator.reason() == "enough");
  coordinator.clear_stop();
  CHECK(!coordinator.should_stop());
  CHECK(!coordinator.wait_for_stop(Seconds{0.001}));
}

// TF: Coordinator.testStopAsync
TEST_CASE("a thread asks to stop, and who waits for it goes on") {
  ThreadExecutor executor;
  Coordinator coordinator;
  Coordinator go;
  const auto asking = start(executor, coordinator, "asking", [=]() mutable {
    go.wait_for_stop();
    coordinator.request_stop("a thread has had enough");
  });
  CHECK(!coordinator.wait_for_stop(Seconds{0.001}));
  go.request_stop();
  CHECK(coordinator.wait_for_stop());  // a limit would make this a matter of the machine's speed
  CHECK(coordinator.reason() == "a thread has had enough");
}

// TF: Coordinator.testJoin
// TF: Coordinator.testJoinAllRegistered
TEST_CASE("join returns when all registered threads have ended, though nobody asked to stop") {
  ThreadExecutor executor;
  Coordinator coordinator;
  Coordinator go;
  std::atomic<int> ended = 0;
  std::vector<std::unique_ptr<Worker>> workers;
  for (const char* name : {"a", "b", "c"}) {
    workers.push_back(start(executor, coordinator, name, [&ended, go] {
      go.wait_for_stop();
      ++ended;
    }));
  }
  CHECK(coordinator.live_threads() == std::vector<std::string>{"a", "b", "c"});
  go.request_stop();
  coordinator.join();
  CHECK(ended == 3);
  CHECK(coordinator.live_threads().empty());
  CHECK(coordinator.joined());
  CHECK(!coordinator.should_stop());
}

// TF: Coordinator.testJoinSomeRegistered
TEST_CASE("join waits for threads of the program, for looper threads and for what was registered later") {
  ThreadExecutor executor;
  Coordinator coordinator;
  std::atomic<int> ended = 0;
  std::unique_ptr<Worker> later;
  const auto first = start(executor, coordinator, "first", [&] {
    later = start(executor, coordinator, "later", [&] { ++ended; });
    ++ended;
  });
  std::atomic<bool> looped = false;
  const LooperThread looper(coordinator, executor, "looper", std::nullopt, [&] {
    looped = true;
    throw EndOfInput();
  });
  coordinator.join();
  // The looper's end asks to stop; the others then still have their grace.
  CHECK(ended == 2);
  CHECK(looped);
  CHECK(!looper.alive());
}

// TF: Coordinator.testJoinGraceExpires
TEST_CASE("threads that outlive the grace period are named, however long it is") {
  for (const double grace : {0.00002, 0.002, 1.0}) {
    CAPTURE(grace);
    const auto clock = std::make_shared<ScriptedClock>();
    Coordinator coordinator(clock);
    const auto one = coordinator.register_thread("reader");
    const auto two = coordinator.register_thread("writer");
    coordinator.request_stop("enough");
    const auto error = thrown<TrainingError>([&] { coordinator.join(Seconds{grace}); });
    CHECK(error.starts_with("threads did not end within "));
    CHECK(error.find("(reader, writer)") != std::string::npos);
    CHECK(clock->now().count() == doctest::Approx(grace));
    CHECK(coordinator.joined());
    coordinator.clear_stop();
    coordinator.request_stop("enough");
    CHECK_NOTHROW(coordinator.join(Seconds{grace}, true));
  }
}

// TF: Coordinator.testJoinWithoutGraceExpires
TEST_CASE("the grace period counts from the stop, not from join") {
  for (const bool in_time : {true, false}) {
    CAPTURE(in_time);
    const auto clock = std::make_shared<ScriptedClock>();
    Coordinator coordinator(clock);
    auto thread = coordinator.register_thread("reader");
    clock->at(500, [&] { coordinator.request_stop("enough"); });
    clock->at(in_time ? 501 : 503, [&] { thread.ended(); });
    const auto error = thrown<TrainingError>([&] { coordinator.join(Seconds{2}); });
    CHECK(error.empty() == in_time);
    CHECK(clock->now().count() == doctest::Approx(in_time ? 501 : 502).epsilon(0.0002));
  }
}

// TF: Coordinator.testJoinRaiseReportExcInfo
TEST_CASE("join throws what a thread has reported, as it was") {
  struct Own : std::runtime_error {
    using std::runtime_error::runtime_error;
    int number = 7;
  };
  ThreadExecutor executor;
  Coordinator coordinator;
  const auto failing = start(executor, coordinator, "failing", [=]() mutable {
    coordinator.request_stop(std::make_exception_ptr(Own("first")), "failing");
  });
  try {
    coordinator.join();
    FAIL("nothing was thrown");
  } catch (const Own& error) {
    CHECK(std::string(error.what()) == "first");
    CHECK(error.number == 7);
  }
  CHECK(coordinator.failed_thread() == "failing");
}

// TF: Coordinator.testJoinRaiseReportException
TEST_CASE("of several failures join throws the first, after all threads have ended") {
  ThreadExecutor executor;
  Coordinator coordinator;
  std::atomic<bool> second_ended = false;
  const auto first = start(executor, coordinator, "first", [=]() mutable {
    coordinator.request_stop(std::make_exception_ptr(DataError("first")), "first");
  });
  const auto second = start(executor, coordinator, "second", [=, &second_ended]() mutable {
    coordinator.wait_for_stop();
    coordinator.request_stop(std::make_exception_ptr(IoError("second")), "second");
    second_ended = true;
  });
  CHECK(thrown<DataError>([&] { coordinator.join(); }) == "first");
  CHECK(second_ended);
  CHECK(coordinator.failed_thread() == "first");
  CHECK(thrown<DataError>([&] { coordinator.raise_requested_exception(); }) == "first");
}

// TF: Coordinator.testJoinIgnoresOutOfRange
TEST_CASE("the end of a thread's input stops, but is no failure") {
  Coordinator coordinator;
  coordinator.request_stop(std::make_exception_ptr(EndOfInput("no more")), "reader");
  CHECK(coordinator.should_stop());
  CHECK_NOTHROW(coordinator.join());
  CHECK(coordinator.failure() == nullptr);
  CHECK(coordinator.reason() == "no more");
  // Nor is it one after join.
  CHECK_NOTHROW(coordinator.request_stop(std::make_exception_ptr(EndOfInput())));
}

// TF: Coordinator.testJoinIgnoresMyExceptionType
TEST_CASE("what counts as clean can be chosen, and then nothing else does") {
  const auto is_clean = [](const std::exception& error) {
    return dynamic_cast<const std::out_of_range*>(&error) != nullptr;
  };
  Coordinator coordinator(std::make_shared<SystemClock>(), is_clean);
  coordinator.request_stop(std::make_exception_ptr(std::out_of_range("over")));
  CHECK_NOTHROW(coordinator.join());
  coordinator.clear_stop();
  coordinator.request_stop(std::make_exception_ptr(EndOfInput("no more")));
  CHECK(thrown<EndOfInput>([&] { coordinator.join(); }) == "no more");
}

// TF: Coordinator.testJoinRaiseReportExceptionUsingHandler
TEST_CASE("stop_on_exception reports what is thrown, of any type, and does not throw it") {
  ThreadExecutor executor;
  for (const bool known : {true, false}) {
    struct Odd {};
    Coordinator coordinator;
    const auto failing = start(executor, coordinator, "failing", [=]() mutable {
      coordinator.stop_on_exception(
          [&] {
            if (known) throw std::runtime_error("first");
            throw Odd{};
          },
          "failing");
    });
    if (known) {
      CHECK(thrown<std::runtime_error>([&] { coordinator.join(); }) == "first");
    } else {
      CHECK_THROWS_AS(coordinator.join(), Odd);
    }
    CHECK(coordinator.failed_thread() == "failing");
    coordinator.clear_stop();
    coordinator.stop_on_exception([] {});
    CHECK(!coordinator.should_stop());
  }
}

// TF: Coordinator.testClearStopClearsExceptionToo
TEST_CASE("clear_stop forgets the failure and that threads were joined") {
  Coordinator coordinator;
  coordinator.request_stop(std::make_exception_ptr(DataError("first")), "reader");
  CHECK_THROWS_AS(coordinator.join(), DataError);
  coordinator.clear_stop();
  CHECK(!coordinator.joined());
  CHECK(coordinator.failure() == nullptr);
  CHECK(coordinator.failed_thread() == "");
  CHECK_NOTHROW(coordinator.raise_requested_exception());
  CHECK_NOTHROW(coordinator.join());
  coordinator.clear_stop();
  coordinator.request_stop(std::make_exception_ptr(IoError("second")), "writer");
  CHECK(thrown<IoError>([&] { coordinator.join(); }) == "second");
}

// TF: Coordinator.testRequestStopRaisesIfJoined
// TF: Coordinator.testRequestStopRaisesIfJoined_ExcInfo
TEST_CASE("a failure that is reported after join is thrown at once, since nobody would look for it") {
  Coordinator coordinator;
  coordinator.join();
  CHECK(thrown<DataError>(
            [&] { coordinator.request_stop(std::make_exception_ptr(DataError("too late"))); }) == "too late");
  CHECK(thrown<DataError>([&] { coordinator.stop_on_exception([] { throw DataError("and this"); }); }) ==
        "and this");
  CHECK(coordinator.failure() == nullptr);
}

// TF: LooperThread.testTargetArgs
TEST_CASE("a looper thread calls its target again and again, back to back or at intervals") {
  ThreadExecutor executor;
  for (const auto interval : {std::optional<Seconds>(), std::optional(Seconds{0.001})}) {
    Coordinator coordinator;
    std::vector<int> called;
    const LooperThread looper(coordinator, executor, "looper", interval, [&, coordinator]() mutable {
      called.push_back(static_cast<int>(called.size()));
      if (called.size() == 3) coordinator.request_stop("enough");
    });
    coordinator.join();
    CHECK(called == std::vector<int>{0, 1, 2});
  }
}

// TF: LooperThread.testTargetKwargs
// TF: LooperThread.testTargetMixedArgs
// What the original passes in a list or by name, a function here holds or refers to.
TEST_CASE("a looper thread's target has what it was given") {
  ThreadExecutor executor;
  Coordinator coordinator;
  std::string said;
  const auto target = [&said](Coordinator& bound, std::string& copy) {
    said += copy + ", ";
    copy = "kept";
    if (said.size() > 10) bound.request_stop("enough");
  };
  const LooperThread looper(
      coordinator, executor, "looper", std::nullopt,
      [target, coordinator, copy = std::string("copied")]() mutable { target(coordinator, copy); });
  coordinator.join();
  CHECK(said == "copied, kept, ");
}

TEST_CASE("a looper thread ends when its object goes, and stops the others when it fails") {
  ThreadExecutor executor;
  Coordinator coordinator;
  Coordinator called;
  {
    const LooperThread endless(coordinator, executor, "endless", std::nullopt,
                               [called]() mutable { called.request_stop(); });
    CHECK(called.wait_for_stop());
    CHECK(endless.alive());
  }
  CHECK(!coordinator.should_stop());
  CHECK(coordinator.live_threads().empty());
  const LooperThread failing(coordinator, executor, "failing", Seconds{3600},
                             [] { throw DataError("lost the feed"); });
  CHECK(coordinator.wait_for_stop());
  CHECK(thrown<DataError>([&] { coordinator.join(); }) == "lost the feed");
  CHECK(coordinator.failed_thread() == "failing");
}

}  // namespace lockstep
