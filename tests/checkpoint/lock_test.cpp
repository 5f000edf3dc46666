#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/lock.hpp>

#include "checkpoint_support.hpp"

namespace lockstep {
namespace {

using test::FakeIdentity;
using test::Job;
using test::MemoryDirectory;
using test::Messages;

/// Calls something at every sleep: what other jobs do while this one waits.
class BusyClock final : public Clock {
 public:
  Seconds now() const override { return fake_.now(); }
  double wall_seconds() const override { return fake_.wall_seconds(); }
  void sleep(Seconds duration) override {
    fake_.advance(duration);
    if (meanwhile) meanwhile();
  }

  std::function<void()> meanwhile;

 private:
  FakeClock fake_;
};

/// Keeps periodic tasks to be called by hand, as long as their owners live.
class HandExecutor final : public Executor {
 public:
  std::unique_ptr<Worker> start(const std::string& name) override { return InlineExecutor().start(name); }
  std::unique_ptr<Periodic> every(const std::string&, Seconds, std::function<void()> task) override {
    auto handle = std::make_unique<Handle>();
    handle->task = std::make_shared<std::function<void()>>(std::move(task));
    tasks_.push_back(handle->task);
    return handle;
  }

  void run_all() {
    for (std::size_t i = 0; i < tasks_.size(); ++i) {
      if (const auto task = tasks_[i].lock()) (*task)();
    }
  }

 private:
  struct Handle final : Periodic {
    std::shared_ptr<std::function<void()>> task;
  };
  std::vector<std::weak_ptr<std::function<void()>>> tasks_;
};

struct Scene {
  std::shared_ptr<MemoryDirectory> directory = std::make_shared<MemoryDirectory>();
  std::shared_ptr<FakeIdentity::World> world = std::make_shared<FakeIdentity::World>();
  BusyClock clock;
  HandExecutor executor;
  std::shared_ptr<Messages> messages = std::make_shared<Messages>();
  Log log{messages};

  std::unique_ptr<DirectoryLock> lock(ProcessIdentity& identity, LockOptions options = {}) {
    return std::make_unique<DirectoryLock>(directory, clock, executor, log, identity, options);
  }

  /// A process that takes the lock and ends without releasing it.
  std::uint64_t leave_behind(ProcessIdentity& identity) {
    auto held = lock(identity);
    const std::uint64_t token = held->token();
    const auto names = directory->disk().names;
    held.reset();
    directory->disk().names = names;
    return token;
  }
};

std::string refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const EnvironmentError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("a free directory is taken at once, named in .lock, and given free at the end") {
  Scene scene;
  FakeIdentity me(scene.world, "n1", 10, "slurm-5");
  {
    const auto lock = scene.lock(me);
    CHECK(lock->token() == 1);
    CHECK(lock->held());
    const auto holder = read_lock(*scene.directory);
    REQUIRE(holder);
    CHECK(*holder == lock->holder());
    CHECK(holder->host == "n1");
    CHECK(holder->pid == 10);
    CHECK(holder->job == "slurm-5");
    CHECK(scene.directory->exists(".heartbeat"));
  }
  CHECK(scene.directory->list().empty());
  CHECK(scene.clock.now() == Seconds{0});
}

TEST_CASE(
    "a living job on this host is given three seconds, then the newcomer is refused and has written "
    "nothing") {
  Scene scene;
  FakeIdentity first(scene.world, "n1", 10, "slurm-5");
  FakeIdentity second(scene.world, "n1", 11);
  const auto held = scene.lock(first);
  const long before = scene.directory->disk().operations;
  const std::string text = refusal([&] { scene.lock(second); });
  CHECK(text.find("in use by job slurm-5, pid 10 on host n1, since 2023-") != std::string::npos);
  CHECK(text.find("--checkpoint_dir") != std::string::npos);
  CHECK(scene.messages->contain("waiting up to 3 s"));
  CHECK(scene.clock.now().count() == doctest::Approx(3).epsilon(0.05));
  CHECK(scene.directory->disk().operations == before);
}

TEST_CASE("a job on this host that goes while it is waited for is followed by the newcomer") {
  Scene scene;
  FakeIdentity first(scene.world, "n1", 10);
  FakeIdentity second(scene.world, "n1", 11);
  for (const bool in_good_order : {true, false}) {
    auto held = scene.lock(first);
    const std::uint64_t token = held->token();
    scene.clock.meanwhile = [&] {
      if (in_good_order) {
        held.reset();
      } else {
        first.die();
      }
    };
    const auto next = scene.lock(second);
    scene.clock.meanwhile = nullptr;
    CHECK(next->held());
    if (!in_good_order) CHECK(next->token() == token + 1);
  }
}

TEST_CASE("a dead job on this host is followed at once, also when its pid was given to another process") {
  Scene scene;
  FakeIdentity first(scene.world, "n1", 10);
  const std::uint64_t token = scene.leave_behind(first);
  first.die();
  FakeIdentity other_with_same_pid(scene.world, "n1", 10);
  FakeIdentity second(scene.world, "n1", 11);
  const auto next = scene.lock(second);
  CHECK(next->token() == token + 1);
  CHECK(scene.clock.now() == Seconds{0});
  CHECK(scene.messages->contain("is gone; taking over"));
}

TEST_CASE("a job on another host is followed after 30 seconds without a heartbeat, not before") {
  Scene scene;
  FakeIdentity first(scene.world, "n1", 10);
  FakeIdentity second(scene.world, "n2", 10);
  scene.leave_behind(first);
  const auto next = scene.lock(second);
  CHECK(next->token() == 2);
  CHECK(scene.clock.now().count() == doctest::Approx(30).epsilon(0.01));
  CHECK(scene.messages->contain("watching its heartbeat for up to 30 s"));
}

TEST_CASE("a holder on another host that is known to be gone is followed at once, and no other holder is") {
  Scene scene;
  FakeIdentity other(scene.world, "n2", 20);
  scene.leave_behind(other);
  const auto holder = read_lock(*scene.directory);
  REQUIRE(holder);
  const Seconds start = scene.clock.now();
  FakeIdentity me(scene.world, "n1", 10);
  CHECK(scene.lock(me, {.gone = holder->nonce})->token() == holder->token + 1);
  CHECK(scene.clock.now() == start);
  CHECK(scene.messages->contain("was lost; taking over"));
  scene.leave_behind(other);
  scene.lock(me, {.gone = holder->nonce});
  CHECK(scene.clock.now() - start >= LockOptions().remote_limit);
}

TEST_CASE("a job on another host whose heart beats is respected, however wrong its clock is") {
  Scene scene;
  FakeIdentity first(scene.world, "n1", 10);
  FakeIdentity second(scene.world, "n2", 11);
  const auto held = scene.lock(first);
  scene.clock.meanwhile = [&] {
    if (scene.clock.now() > Seconds{29}) scene.executor.run_all();
  };
  CHECK(refusal([&] { scene.lock(second); }).find("pid 10 on host n1") != std::string::npos);
  CHECK(held->held());
}

TEST_CASE("a holder that sleeps, is followed and wakes, learns it and changes nothing") {
  Scene scene;
  FakeIdentity first(scene.world, "n1", 10);
  FakeIdentity second(scene.world, "n2", 11);
  auto sleeper = scene.lock(first);
  const auto next = scene.lock(second);
  CHECK(next->token() == 2);
  scene.executor.run_all();
  const auto before = scene.directory->disk().operations;
  CHECK_FALSE(sleeper->held());
  CHECK(scene.messages->contain("was taken over by pid 11 on host n2"));
  sleeper.reset();
  CHECK(scene.directory->disk().operations == before);
  CHECK(read_lock(*scene.directory) == next->holder());
}

TEST_CASE("an earlier run of the same batch job is followed at once, another job or a run of now is not") {
  struct BatchIdentity final : FakeIdentity {
    BatchIdentity(std::shared_ptr<World> world, std::string host, std::string job, std::int64_t restarts)
        : FakeIdentity(std::move(world), std::move(host), 10, std::move(job)), restarts_(restarts) {}
    std::int64_t job_restarts() const override { return restarts_; }

   private:
    std::int64_t restarts_;
  };
  const auto waits = [](const std::string& job, std::int64_t before, std::int64_t now) {
    Scene scene;
    BatchIdentity first(scene.world, "n1", job, before);
    BatchIdentity second(scene.world, "n2", "slurm-5", now);
    scene.leave_behind(first);
    const auto next = scene.lock(second);
    CHECK(next->token() == 2);
    return scene.clock.now() > Seconds{0};
  };
  CHECK_FALSE(waits("slurm-5", 0, 1));
  CHECK_FALSE(waits("slurm-5", 1, 3));
  CHECK(waits("slurm-5", 1, 1));
  CHECK(waits("slurm-5", 2, 1));
  CHECK(waits("slurm-6", 0, 1));
  CHECK(waits("", 0, 1));
}

/// All is there, and the token is more than 64 bits hold.
constexpr const char* kTokenTooLarge =
    R"({"host":"n1","boot_id":"b","pid":1,"start_time":1,"job":"","restarts":0,"since":0,"nonce":"x",
        "token":18446744173709551615})";

TEST_CASE("a lock of garbage is treated as one of an unknown host") {
  Scene scene;
  FakeIdentity me(scene.world, "n1", 10);
  for (const char* text :
       {"", "{", "[1,2]", "{\"host\": 5}", "{\"host\":\"n1\",\"pid\":-1}", kTokenTooLarge}) {
    const auto bytes = std::as_bytes(std::span(text, std::string_view(text).size()));
    if (scene.directory->exists(".lock")) scene.directory->remove(".lock");
    scene.directory->create(".lock")->write(bytes);
    const Seconds before = scene.clock.now();
    const auto lock = scene.lock(me);
    CHECK(lock->held());
    CHECK((scene.clock.now() - before).count() == doctest::Approx(30).epsilon(0.01));
  }
}

TEST_CASE("what a lock says of its owner is shown without what a terminal would obey") {
  LockHolder holder;
  holder.host = "n1\x1b[2J";
  holder.job = "slurm\n-5\x7f";
  const std::string text = describe(holder);
  CHECK(text.find("n1?[2J") != std::string::npos);
  CHECK(text.find("slurm?-5?") != std::string::npos);
}

TEST_CASE("a living job gives way only when its job id is typed") {
  Scene scene;
  FakeIdentity first(scene.world, "n1", 10, "slurm-5");
  FakeIdentity second(scene.world, "n1", 11);
  const auto held = scene.lock(first);
  CHECK_FALSE(refusal([&] { scene.lock(second, {.steal = "slurm-6"}); }).empty());
  const auto stolen = scene.lock(second, {.steal = "slurm-5"});
  CHECK(stolen->token() == 2);
}

TEST_CASE("a token is larger than that of every checkpoint, also when the lock was released") {
  Scene scene;
  FakeIdentity me(scene.world, "n1", 10);
  CHECK(Job(scene.directory, {}, 41).save_as_owner(3).ok());
  CHECK(scene.lock(me)->token() == 42);
}

TEST_CASE("after the largest token there is no next one: refused, and nothing is changed") {
  Scene scene;
  FakeIdentity me(scene.world, "n1", 10);
  CHECK(Job(scene.directory, {}, std::numeric_limits<std::uint64_t>::max()).save_as_owner(3).ok());
  const auto before = scene.directory->list().size();
  CHECK(refusal([&] { scene.lock(me); }).find("largest fencing token") != std::string::npos);
  CHECK(scene.directory->list().size() == before);
}

TEST_CASE("the claim of a newcomer that died on the way does not block the next") {
  for (const char* host : {"n1", "n3"}) {
    Scene scene;
    FakeIdentity first(scene.world, "n1", 10);
    FakeIdentity died(scene.world, host, 11);
    FakeIdentity me(scene.world, "n1", 12);
    scene.leave_behind(first);
    first.die();
    Scene other;
    other.world = scene.world;
    const auto lock = other.lock(died);
    scene.directory->disk().names[".lock.next-1"] = other.directory->disk().names.at(".lock");
    died.die();
    const auto next = scene.lock(me);
    CHECK(next->held());
    CHECK_FALSE(scene.directory->exists(".lock.next-1"));
  }
}

/// Lets other newcomers run at one chosen call on the disk, in the middle of the first one's attempt.
class InterruptedDirectory : public Directory {
 public:
  InterruptedDirectory(std::shared_ptr<Directory> inner, long at, std::function<void()> interruption)
      : inner_(std::move(inner)), at_(at), interruption_(std::move(interruption)) {}

  bool interrupted() const { return calls_ >= at_; }

  const std::filesystem::path& path() const override { return inner_->path(); }
  std::unique_ptr<WritableFile> create(const std::string& name) override {
    count();
    return inner_->create(name);
  }
  std::unique_ptr<ReadableFile> open(const std::string& name) override {
    count();
    return inner_->open(name);
  }
  bool exists(const std::string& name) override { return inner_->exists(name); }
  std::vector<DirectoryEntry> list() override {
    count();
    return inner_->list();
  }
  void replace(const std::string& from, const std::string& to) override {
    count();
    inner_->replace(from, to);
  }
  void rename(const std::string& from, const std::string& to) override {
    count();
    inner_->rename(from, to);
  }
  void remove(const std::string& name) override {
    count();
    inner_->remove(name);
  }
  void sync() override { inner_->sync(); }
  std::uint64_t available_bytes() override { return inner_->available_bytes(); }

 private:
  void count() {
    if (++calls_ == at_) interruption_();
  }

  std::shared_ptr<Directory> inner_;
  long at_;
  std::function<void()> interruption_;
  long calls_ = 0;
};

TEST_CASE("what cannot be read just now gives no token a second time") {
  class Unreadable final : public InterruptedDirectory {
   public:
    explicit Unreadable(std::shared_ptr<Directory> inner)
        : InterruptedDirectory(std::move(inner), 0, [] {}) {}
    std::unique_ptr<ReadableFile> open(const std::string& name) override {
      if (name.ends_with(".h5")) throw FileError("read", name, EIO);
      return InterruptedDirectory::open(name);
    }
  };
  const auto directory = std::make_shared<MemoryDirectory>();
  CHECK(test::Job(directory, {}, 7).save_as_owner(3).ok());
  FakeClock clock;
  InlineExecutor executor;
  FakeIdentity me;
  const auto token = [&] {
    return DirectoryLock(std::make_shared<Unreadable>(directory), clock, executor, {}, me).token();
  };
  CHECK(token() == 8);  // the state file knows
  directory->remove("checkpoint.json");
  CHECK(token() > 8);
  const auto key = std::make_shared<const MacKey>(std::vector<std::byte>(32, std::byte{1}));
  // With a key what was not signed knows nothing.
  CHECK(test::Job(directory, {}, 7).save_as_owner(4).ok());
  CHECK(
      DirectoryLock(std::make_shared<Unreadable>(directory), clock, executor, {}, me, {.key = key}).token() >
      9);
}

TEST_CASE("of two newcomers exactly one wins, wherever the other one comes in between") {
  enum class Before { free, dead, garbage };
  // The other one may come, come and go in good order, or come and die; on this host or on another.
  enum class Other { stays, leaves, dies };
  long races = 0;
  const LockOptions options{.poll = Seconds{2}};  // few looks while it waits, so that each can be interrupted
  for (const Before before : {Before::free, Before::dead, Before::garbage}) {
    for (const Other what : {Other::stays, Other::leaves, Other::dies}) {
      for (const char* host : {"n1", "n2"}) {
        for (long at = 1;; ++at) {
          CAPTURE(static_cast<int>(before));
          CAPTURE(static_cast<int>(what));
          CAPTURE(host);
          CAPTURE(at);
          Scene scene;
          FakeIdentity first(scene.world, "n1", 10);
          if (before == Before::dead) {
            scene.leave_behind(first);
            first.die();
          } else if (before == Before::garbage) {
            scene.directory->create(".lock");
          }
          FakeIdentity one(scene.world, "n1", 11);
          FakeIdentity two(scene.world, host, 12);
          std::unique_ptr<DirectoryLock> lock_of_two;
          test::MemoryDisk::Names kept;
          const auto directory = std::make_shared<InterruptedDirectory>(scene.directory, at, [&] {
            try {
              lock_of_two = scene.lock(two, options);
            } catch (const EnvironmentError&) {
              return;
            }
            if (what == Other::leaves) lock_of_two.reset();
            if (what == Other::dies) {
              kept = scene.directory->disk().names;
              lock_of_two.reset();
              scene.directory->disk().names = kept;
              two.die();
            }
          });
          std::unique_ptr<DirectoryLock> lock_of_one;
          try {
            lock_of_one = std::make_unique<DirectoryLock>(directory, scene.clock, scene.executor, scene.log,
                                                          one, options);
          } catch (const EnvironmentError&) {
          }
          if (!directory->interrupted()) break;
          ++races;
          // One that slept for 30 s while another took over learns it with its next heartbeat.
          const bool slept = scene.clock.now() >= Seconds{30};
          scene.executor.run_all();
          const bool one_has = lock_of_one && lock_of_one->held();
          const bool two_has = lock_of_two && lock_of_two->held();
          CHECK_FALSE((one_has && two_has));
          if (!slept || what == Other::stays) CHECK((one_has || two_has));
          // Who has won is not driven out by one that looked before.
          if (!slept && what == Other::stays && lock_of_two) CHECK(two_has);
          // Whoever believes to have it is the one that is named.
          const auto owner = read_lock(*scene.directory);
          if (one_has || two_has) {
            REQUIRE(owner);
            CHECK(owner->pid == (one_has ? 11 : 12));
          }
          for (const DirectoryEntry& entry : scene.directory->list()) {
            CHECK(entry.name.find(".lock.next") == std::string::npos);
          }
        }
      }
    }
  }
  MESSAGE("races: ", races);
  CHECK(races > 100);
}

}  // namespace
}  // namespace lockstep
