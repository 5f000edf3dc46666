#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lockstep/mpi/peer_watch.hpp>
#include <lockstep/mpi/simulated_world.hpp>

namespace lockstep {
namespace {

/// A process that a simulated rank takes for its own; it sleeps until it is killed.
class Stand final : public ProcessIdentity {
 public:
  Stand() : pid_(::fork()) {
    if (pid_ != 0) return;
    for (;;) ::pause();
  }
  ~Stand() override {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Stand(const Stand&) = delete;
  Stand& operator=(const Stand&) = delete;

  /// Returns when it is dead, a zombie.
  void kill() const {
    ::kill(pid_, SIGKILL);
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT);
  }

  std::string host() const override { return "host"; }
  std::string boot_id() const override { return SystemIdentity().boot_id(); }
  std::int64_t pid() const override { return pid_; }
  std::optional<std::uint64_t> start_time(std::int64_t pid) const override {
    return SystemIdentity().start_time(pid);
  }
  std::string job_id() const override { return ""; }
  std::uint64_t nonce() override { return 1; }

 private:
  pid_t pid_;
};

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

}  // namespace

TEST_CASE("every other rank of the host hears once which rank is dead, whichever it is") {
  constexpr int kRanks = 3;
  for (int dead = 0; dead < kRanks; ++dead) {
    CAPTURE(dead);
    SimulatedWorld{kRanks}.run([&](const Communicator& world) {
      Stand stand;
      ByHand executor;
      std::vector<std::string> heard;
      const PeerWatch watch(world, executor, stand, [&](const std::string& text) { heard.push_back(text); });
      executor.turn();
      CHECK(heard.empty());
      world.barrier("all to have looked");
      if (world.rank() == dead) stand.kill();
      world.barrier("the rank to die");
      executor.turn();
      executor.turn();
      if (world.rank() == dead) {
        CHECK(heard.empty());
      } else {
        CHECK(heard.size() == 1);
        CHECK(heard.front().find("rank " + std::to_string(dead) + " (pid ") == 0);
        CHECK(heard.front().find("launch it again") != std::string::npos);
      }
      world.barrier("all to have heard");
    });
  }
}

TEST_CASE("one rank alone watches nobody") {
  ByHand executor;
  Stand stand;
  const PeerWatch watch(Communicator::self(), executor, stand,
                        [](const std::string&) { FAIL("nobody is lost"); });
  CHECK_THROWS(executor.turn());  // nothing was started
}

}  // namespace lockstep
