#include <functional>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/saver.hpp>
#include <lockstep/checkpoint/status_file.hpp>
#include <lockstep/hooks/global_step_waiter.hpp>
#include <lockstep/mpi/simulated_world.hpp>

#include "fake_context.hpp"
#include "summary_support.hpp"

namespace lockstep {
namespace {

/// A clock of which every sleep does something, as if another job went on meanwhile.
class BusyClock final : public Clock {
 public:
  Seconds now() const override { return now_; }
  double wall_seconds() const override { return now_.count(); }
  void sleep(Seconds duration) override {
    now_ += duration;
    ++sleeps;
    if (meanwhile) meanwhile(sleeps);
  }
  int sleeps = 0;
  std::function<void(int sleeps)> meanwhile;

 private:
  Seconds now_{100};
};

/// Another job, as far as its directory shows.
struct Training {
  explicit Training(std::filesystem::path path) : path_(std::move(path)) {
    model.parameter("w", {3});
    PlainAllocator allocator;
    model.freeze(allocator);
  }
  void save(std::int64_t step) {
    std::shared_ptr<Directory> directory = PosixFileSystem().create_directory(path_);
    InlineExecutor executor;
    SystemIdentity identity;
    FakeClock clock;
    model.set_global_step(step);
    Saver saver(directory, model.entries(), {}, clock, executor, Log(), 0, identity);
    saver.start(step);
    saver.wait();
  }
  void damage(const std::string& name) {
    const auto directory = PosixFileSystem().open_directory(path_);
    auto bytes = read_all(*directory->open(name), 1 << 20);
    bytes[bytes.size() / 2] ^= std::byte{1};
    replace_file(*directory, name, bytes);
  }

  State model;

 private:
  std::filesystem::path path_;
};

struct Waited {
  std::optional<AwaitedCheckpoint> found;
  std::string error;
  int sleeps = 0;
  std::vector<std::string> lines;
};

/// Waits on `ranks` simulated ranks. Only the chief's clock moves the other job: those of the others stand
/// still, and may not be needed.
Waited wait(int ranks, const std::filesystem::path& path, const GlobalStepWaiterOptions& options,
            const std::function<void(int sleeps)>& meanwhile = {}) {
  Waited result;
  const auto messages = std::make_shared<test::Messages>();
  SimulatedWorld{ranks, 0, static_cast<std::uint64_t>(ranks)}.run([&](const Communicator& world) {
    const auto clock = std::make_shared<BusyClock>();
    if (world.is_chief()) clock->meanwhile = meanwhile;
    WaitPolicy policy = world.policy();
    policy.clock = clock;
    if (world.is_chief()) policy.log = Log(messages);
    const Communicator comm = world.with_policy(policy);
    PosixFileSystem files;
    std::optional<AwaitedCheckpoint> found;
    std::string error;
    try {
      found = wait_for_global_step(comm, files, path, options);
    } catch (const Error& caught) {
      error = caught.what();
    }
    const auto all = world.all_gather_text(found ? std::to_string(found->step) + found->name : error);
    for (const std::string& theirs : all) CHECK(theirs == all.front());
    if (!world.is_chief()) {
      CHECK(clock->sleeps == 0);
      return;
    }
    result = {found, error, clock->sleeps, messages->lines};
  });
  return result;
}

}  // namespace

// TF: GlobalStepWaiterHook.test_not_wait_for_step_zero
TEST_CASE("a wait for step 0 or less ends at once, whatever is in the directory") {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (const std::int64_t step : {0, -5}) {
      const auto waited = wait(ranks, "/no/such/directory", {.wait_until_step = step});
      CHECK(!waited.found);
      CHECK(waited.error.empty());
      CHECK(waited.sleeps == 0);
    }
  }
}

// TF: GlobalStepWaiterHook.test_wait_for_step
TEST_CASE("a wait for step 1000 goes on at 500 and ends at 1100, on all ranks by the chief's word") {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    const test::Folder folder;
    Training training(folder.path / "run");
    const auto waited = wait(ranks, folder.path / "run", {.wait_until_step = 1000}, [&](int sleeps) {
      if (sleeps == 1) training.save(500);
      if (sleeps == 2) training.save(1100);
    });
    CHECK(waited.found->step == 1100);
    CHECK(waited.found->name == "ckpt-00001100.h5");
    CHECK(waited.sleeps == 2);
  }
}

TEST_CASE("what is there already is not waited for, and of several the newest is taken") {
  const test::Folder folder;
  Training training(folder.path);
  for (const std::int64_t step : {8, 10, 12}) training.save(step);
  const auto waited = wait(2, folder.path, {.wait_until_step = 9});
  CHECK(waited.found->step == 12);
  CHECK(waited.sleeps == 0);
  CHECK(waited.lines.empty());
}

TEST_CASE("a damaged checkpoint is told once and not taken; an older good one that is enough is") {
  const test::Folder folder;
  Training training(folder.path);
  training.save(10);
  training.damage("ckpt-00000010.h5");
  const auto waited = wait(2, folder.path, {.wait_until_step = 10}, [&](int sleeps) {
    if (sleeps == 3) training.save(11);
    if (sleeps == 3) training.save(12);
    if (sleeps == 3) training.damage("ckpt-00000012.h5");
  });
  CHECK(waited.found->step == 11);
  CHECK(waited.sleeps == 3);
  REQUIRE(waited.lines.size() == 3);
  CHECK(waited.lines[0].starts_with("ckpt-00000010.h5"));
  CHECK(waited.lines[1].starts_with("waiting: no checkpoint of step 10"));
  CHECK(waited.lines[2].starts_with("ckpt-00000012.h5"));
}

TEST_CASE("while it lasts the chief says what is missing, and at the limit all ranks throw") {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    const test::Folder folder;
    Training training(folder.path / "run");
    const GlobalStepWaiterOptions options{
        .wait_until_step = 9, .limit_secs = 10, .poll_secs = 1, .notice_secs = 4};
    const auto waited = wait(ranks, folder.path / "run", options, [&](int sleeps) {
      if (sleeps != 2) return;
      training.save(5);
      RunStatus status;
      status.state = "done";
      status.global_step = 5;
      write_status(*PosixFileSystem().open_directory(folder.path / "run"), status);
    });
    const std::string what =
        "no checkpoint of step 9 or later in '" + (folder.path / "run").string() + "' after ";
    CHECK(waited.error == what +
                              "10 s: the newest is of step 5, the training is done at step 5; look whether "
                              "the training runs, or wait longer");
    CHECK(waited.sleeps == 10);
    CHECK(waited.lines ==
          std::vector<std::string>{
              "waiting: " + what + "0 s: the directory is not there",
              "waiting: " + what + "4 s: the newest is of step 5, the training is done at step 5",
              "waiting: " + what + "8 s: the newest is of step 5, the training is done at step 5"});
  }
}

TEST_CASE("a wait that makes no sense, or a directory that is none, is an error on all ranks") {
  const test::Folder folder;
  CHECK(wait(2, folder.path, {.wait_until_step = 1, .poll_secs = 0})
            .error.starts_with("a wait for a step looks"));
  CHECK(
      wait(2, folder.path, {.wait_until_step = 1, .notice_secs = -1}).error.starts_with("a wait for a step"));
  CHECK(
      wait(2, folder.path, {.wait_until_step = 1, .limit_secs = -1}).error.starts_with("a wait for a step"));
  PosixFileSystem().open_directory(folder.path)->create("file")->close();
  CHECK(!wait(3, folder.path / "file", {.wait_until_step = 1}).error.empty());
}

}  // namespace lockstep
