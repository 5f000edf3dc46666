#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include <doctest/doctest.h>
#include <unistd.h>

#include <lockstep/base/doze.hpp>
#include <lockstep/mpi/call_watch.hpp>
#include <lockstep/mpi/environment.hpp>
#include <lockstep/mpi/interop.hpp>

#include "blocking_call.hpp"

namespace lockstep {
namespace {

constexpr CallWatch::Limits kLimits{.start = Seconds{0}, .call = Seconds{0.1}};

/// Periodic tasks run when they are told to.
class ByHand final : public Executor {
 public:
  std::unique_ptr<Worker> start(const std::string& name) override { return InlineExecutor().start(name); }
  std::unique_ptr<Periodic> every(const std::string&, Seconds, std::function<void()> task) override {
    task_ = std::move(task);
    return std::make_unique<Periodic>();
  }
  void turn() const { task_(); }

 private:
  std::function<void()> task_;
};

void wait_for(const std::filesystem::path& file) {
  // Its partner is in a call of MPI that waits for this rank: no message could come.
  while (!std::filesystem::exists(file)) std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

}  // namespace

TEST_CASE("a call that waits for a rank, whichever it is, is told at the limit with what it waits for") {
  const auto world = from_mpi(MPI_COMM_WORLD);
  ThreadExecutor executor;
  SystemIdentity process;
  const auto folder = std::filesystem::temp_directory_path();
  const auto told = folder / world.broadcast_text("lockstep_call_watch_" + std::to_string(::getpid()));
  for (const bool memory : {false, true}) {
    for (int late = 0; late < world.size(); ++late) {
      CAPTURE(memory);
      CAPTURE(late);
      world.barrier("the round");
      std::filesystem::remove(told);
      world.barrier("the file to be gone");
      std::atomic<int> calls = 0;
      std::string text;
      {
        const CallWatch watch(executor, process, kLimits, [&](const std::string& words) {
          text = words;
          ++calls;
          std::ofstream(told).put('x');
        });
        if (world.rank() == late) wait_for(told);
        if (memory) {
          world.share(64);
        } else {
          world.split(0, world.rank());
        }
      }
      // The one that came late may wait, too, for those that are slow.
      if (world.rank() != late) {
        CHECK(calls >= 1);
        CHECK(text.find("(the limit) for all ranks") != std::string::npos);
        CHECK(text.find(memory ? "memory" : "a communicator") != std::string::npos);
        CHECK(text.find("pid " + std::to_string(::getpid())) != std::string::npos);
      }
    }
  }
  world.barrier("the end");
  std::filesystem::remove(told);
}

TEST_CASE("a call is told once, and calls that come one after the other are not taken for one") {
  ByHand executor;
  SystemIdentity process;
  int calls = 0;
  // Reached at any second look at one call.
  const CallWatch watch(executor, process, {.start = Seconds{0}, .call = Seconds{1e-9}},
                        [&](const std::string&) { ++calls; });
  const auto look = [&] {
    doze(Seconds{1e-6});  // for the limit to pass
    executor.turn();
  };
  for (int i = 0; i < 5; ++i) {
    const BlockingCall call("a call");
    look();
  }
  look();
  look();
  CHECK(calls == 0);
  {
    const BlockingCall call("MPI to start", BlockingCall::Kind::start);
    look();
    look();
  }
  CHECK(calls == 0);  // this kind has no limit here
  for (int expected = 1; expected <= 2; ++expected) {
    const BlockingCall call("a call");
    for (int i = 0; i < 4; ++i) look();
    CHECK(calls == expected);
  }
}

TEST_CASE("the time of a call counts from its begin, however long nobody looked before") {
  ByHand executor;
  SystemIdentity process;
  int calls = 0;
  const CallWatch watch(executor, process, {.start = Seconds{60}, .call = Seconds{60}},
                        [&](const std::string&) { ++calls; });
  const BlockingCall call("a call");
  executor.turn();
  executor.turn();
  CHECK(calls == 0);
}

}  // namespace lockstep
