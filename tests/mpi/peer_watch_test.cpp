#include <algorithm>
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

  void stop() const {
    ::kill(pid_, SIGSTOP);
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED);
  }
  void go_on() const {
    ::kill(pid_, SIGCONT);
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(pid_), &info, WCONTINUED);
  }
  bool alive() const { return SystemIdentity().start_time(pid_).has_value(); }

  void kill() const {
    ::kill(pid_, SIGKILL);
    await_death();
  }
  /// Returns when it is dead, a zombie.
  void await_death() const {
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
      const PeerWatch watch(world, executor, stand,
                            {.lost = [&](const std::string& text) { heard.push_back(text); }});
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

namespace {

constexpr Seconds kLimit{4};
constexpr int kLooks = 40;  // of 0.25 s: 1.25 limits and 5 s

bool is_one_of(int rank, const std::vector<int>& ranks) {
  return std::ranges::find(ranks, rank) != ranks.end();
}

/// Ranks that are stopped do not look. Who hears what of whom.
void check_stopped(const std::vector<int>& stopped, bool kills) {
  constexpr int kRanks = 4;
  SimulatedWorld{kRanks}.run([&](const Communicator& world) {
    Stand stand;
    ByHand executor;
    std::vector<std::string> heard;
    const PeerWatch watch(world, executor, stand,
                          {.lost = [&](const std::string& text) { heard.push_back(text); },
                           .hang_limit = kLimit,
                           .kills = kills});
    const int me = world.rank();
    const bool stands = is_one_of(me, stopped);
    if (stands) stand.stop();
    world.barrier("some to stop");
    for (int look = 1; look < kLooks && !stands; ++look) executor.turn();
    CHECK(heard.empty());
    CHECK(stand.alive());
    world.barrier("all to have looked");
    if (!stands) executor.turn();
    // The nearest one below tells, of all up to the next that is not stopped.
    std::vector<int> mine;
    for (int rank = (me + 1) % kRanks; !stands && is_one_of(rank, stopped); rank = (rank + 1) % kRanks) {
      mine.push_back(rank);
    }
    if (!kills && mine.size() > 1) mine.erase(mine.begin() + 1, mine.end());
    REQUIRE(heard.size() == mine.size());
    for (std::size_t i = 0; i < mine.size(); ++i) {
      CHECK(heard[i].starts_with("rank " + std::to_string(mine[i]) + " (pid "));
      const bool says = heard[i].find(kills ? "and is killed" : "has been stopped") != std::string::npos;
      CHECK(says);
    }
    world.barrier("all to have heard");
    if (kills && stands) stand.await_death();
    CHECK(stand.alive() == !(kills && stands));
    executor.turn();
    CHECK(heard.size() == mine.size());
    world.barrier("the end");
  });
}

}  // namespace

TEST_CASE("a rank that was stopped for too long ends the job, or is killed where the others can go on") {
  for (const bool kills : {false, true}) {
    CAPTURE(kills);
    for (int rank = 0; rank < 4; ++rank) check_stopped({rank}, kills);
    check_stopped({0, 1}, kills);
    check_stopped({3, 0}, kills);
    check_stopped({0, 2}, kills);
    check_stopped({1, 2, 3}, kills);
  }
}

TEST_CASE(
    "a rank that was stopped for a while and goes on is let be, and one that is dead is no news to MPI") {
  SimulatedWorld{2}.run([&](const Communicator& world) {
    Stand stand;
    ByHand executor;
    std::vector<std::string> heard;
    const PeerWatch watch(world, executor, stand,
                          {.lost = [&](const std::string& text) { heard.push_back(text); },
                           .hang_limit = kLimit,
                           .kills = true});
    const bool looks = world.is_chief();
    for (int time = 0; time < 3; ++time) {
      if (!looks) stand.stop();
      world.barrier("it to stop");
      for (int look = 1; look < kLooks && looks; ++look) executor.turn();
      world.barrier("it to be looked at");
      if (!looks) stand.go_on();
      world.barrier("it to go on");
      if (looks) executor.turn();
      world.barrier("it to be looked at again");
    }
    if (!looks) stand.kill();
    world.barrier("it to die");
    for (int look = 0; look < 2 * kLooks && looks; ++look) executor.turn();
    CHECK(heard.empty());
    world.barrier("the end");
  });
}

TEST_CASE("behind one that is dead, one that is stopped is seen") {
  SimulatedWorld{3}.run([&](const Communicator& world) {
    Stand stand;
    ByHand executor;
    std::vector<std::string> heard;
    const PeerWatch watch(world, executor, stand,
                          {.lost = [&](const std::string& text) { heard.push_back(text); },
                           .hang_limit = kLimit,
                           .kills = true});
    if (world.rank() == 1) stand.kill();
    if (world.rank() == 2) stand.stop();
    world.barrier("one to die, one to stop");
    for (int look = 0; look < kLooks && world.is_chief(); ++look) executor.turn();
    REQUIRE(heard.size() == (world.is_chief() ? 1 : 0));
    if (world.is_chief()) CHECK(heard.front().starts_with("rank 2 (pid "));
    world.barrier("the end");
  });
}

TEST_CASE("one rank alone watches nobody") {
  ByHand executor;
  Stand stand;
  const PeerWatch watch(Communicator::self(), executor, stand,
                        {.lost = [](const std::string&) { FAIL("nobody is lost"); }});
  CHECK_THROWS(executor.turn());  // nothing was started
}

}  // namespace lockstep
