#include <algorithm>
#include <cerrno>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/lock.hpp>
#include <lockstep/checkpoint/reader.hpp>

#include "checkpoint_support.hpp"

namespace lockstep {
namespace {

using test::Job;
using test::MemoryDirectory;
using test::MemoryDisk;
using test::SmallModel;

std::vector<std::string> names_in(Directory& directory) {
  std::vector<std::string> names;
  for (const DirectoryEntry& entry : directory.list()) names.push_back(entry.name);
  return names;
}

using Names = std::vector<std::string>;

// TF: Saver.testSaveWithGlobalStep, MaxToKeep.testNoMetaGraph, CheckpointManager.testCustomNumbering
// TF: CheckpointSaverHook.test_save_graph_def, CheckpointSaverHook.test_save_graph_def_false
TEST_CASE("a save leaves one verified checkpoint and a state file, and says so") {
  const auto directory = std::make_shared<MemoryDirectory>();
  Job job(directory);
  const SaveResult result = job.save(12);
  CHECK(result.ok());
  CHECK(result.name == "ckpt-00000012.h5");
  CHECK(job.saver().last_durable_step() == 12);
  CHECK(names_in(*directory) == Names{"checkpoint.json", "ckpt-00000012.h5"});
  CHECK(job.messages->contain("saved checkpoint ckpt-00000012.h5 (step 12, "));
  CHECK(CheckpointFile(*directory, result.name).digest() == SmallModel::digest_at(12));
  const auto records = job.saver().checkpoints();
  REQUIRE(records.size() == 1);
  CHECK(records[0].bytes == result.bytes);
  CHECK(records[0].bytes == directory->content(result.name).size());
  CHECK(read_state_file(*directory).state->checkpoints == records);
}

TEST_CASE("what is saved is the state at the call, whatever training does meanwhile") {
  /// Runs nothing before it is waited for.
  class LateWorker final : public Worker {
   public:
    void post(std::function<void()> task) override { tasks_.push_back(std::move(task)); }
    void wait() override {
      for (const auto& task : tasks_) task();
      tasks_.clear();
    }
    bool idle() const override { return tasks_.empty(); }

   private:
    std::vector<std::function<void()>> tasks_;
  };
  class LateExecutor final : public Executor {
   public:
    std::unique_ptr<Worker> start(const std::string&) override { return std::make_unique<LateWorker>(); }
    std::unique_ptr<Periodic> every(const std::string&, Seconds, std::function<void()>) override {
      return nullptr;
    }
  };
  Job job(std::make_shared<MemoryDirectory>());
  LateExecutor executor;
  Saver saver(job.directory, job.model.state.entries(), {}, job.clock, executor, job.log, 0, job.identity);
  job.model.set(5);
  saver.start(5);
  job.model.set(6);
  CHECK(saver.busy());
  CHECK_FALSE(saver.take_result());
  CHECK_FALSE(saver.last_durable_step());
  saver.start(6);
  CHECK(job.messages->contain("the save of step 5 is still running"));
  saver.wait();
  CHECK_FALSE(saver.busy());
  CHECK(saver.take_result()->step == 5);
  CHECK(saver.take_result()->step == 6);
  CHECK_FALSE(saver.take_result());
  CHECK(CheckpointFile(*job.directory, "ckpt-00000005.h5").digest() == SmallModel::digest_at(5));
  CHECK(CheckpointFile(*job.directory, "ckpt-00000006.h5").digest() == SmallModel::digest_at(6));
}

// TF: Saver.testBasic, CheckpointState.testAbsPath
TEST_CASE("a save on a real thread and a real disk is durable after wait") {
  const auto folder =
      std::filesystem::temp_directory_path() / ("lockstep-saver-" + std::to_string(SystemIdentity().nonce()));
  const std::shared_ptr<Directory> directory = PosixFileSystem().create_directory(folder);
  Job job(directory);
  ThreadExecutor executor;
  {
    Saver saver(directory, job.model.state.entries(), {}, job.clock, executor, job.log, 0, job.identity);
    for (const int step : {1, 2, 3}) {
      job.model.set(step);
      saver.start(step);
    }
    saver.wait();
    CHECK(saver.last_durable_step() == 3);
  }
  Job next(directory);
  CHECK(next.restore()->step == 3);
  CHECK(next.model.digest() == SmallModel::digest_at(3));
  std::filesystem::remove_all(folder);
}

// TF: MaxToKeep.testNonSharded, MaxToKeep.testNoMaxToKeep, CheckpointManager.testDeletion
// TF: CheckpointManager.testKeepAll, CheckpointManager.testSaveRestoreState
// TF: CheckpointManager.testContinueFromUnmanaged
TEST_CASE("the newest max_to_keep stay, the rest goes, across restarts and when the number is lowered") {
  const auto directory = std::make_shared<MemoryDirectory>();
  const auto steps = [&] {
    std::vector<std::int64_t> found;
    for (const auto& checkpoint : scan_checkpoints(*directory, "ckpt")) found.push_back(checkpoint.name.step);
    return found;
  };
  const auto steps_of = [](const std::vector<CheckpointRecord>& records) {
    std::vector<std::int64_t> found;
    for (const auto& record : records) found.push_back(record.step);
    return found;
  };
  {
    Job job(directory, {.max_to_keep = 3});
    for (int step = 0; step < 5; ++step) {
      CHECK(job.save(step * 10).ok());
      CHECK(steps_of(job.saver().checkpoints()) == steps());
      CHECK(steps_of(read_state_file(*directory).state->checkpoints) == steps());
    }
    CHECK(steps() == std::vector<std::int64_t>{20, 30, 40});
  }
  directory->content("checkpoint.json").clear();
  {
    Job job(directory, {.max_to_keep = 3});
    CHECK(job.save(50).ok());
    CHECK(steps() == std::vector<std::int64_t>{30, 40, 50});
  }
  Job lowered(directory, {.max_to_keep = 1});
  CHECK(steps().size() == 3);
  CHECK(lowered.save(60).ok());
  CHECK(steps() == std::vector<std::int64_t>{60});
  Job all(directory, {.max_to_keep = 0});
  for (int step = 7; step < 20; ++step) CHECK(all.save(step * 10).ok());
  CHECK(steps().size() == 14);
  CHECK(all.saver().checkpoints().size() == 14);
}

// TF: KeepCheckpointEveryNHours.testNonSharded
TEST_CASE("one checkpoint every n hours stays for good, also when jobs and the state file come and go") {
  for (const bool lose_state : {false, true}) {
    CAPTURE(lose_state);
    const auto directory = std::make_shared<MemoryDirectory>();
    double wall = 1.7e9;
    std::int64_t step = 0;
    for (int launch = 0; launch < 4; ++launch) {
      Job job(directory, {.max_to_keep = 2, .keep_checkpoint_every_n_hours = 1});
      job.clock = FakeClock(Seconds{0}, wall);
      job.saver();  // the hours count from here when the directory is new
      for (int save = 0; save < 6; ++save) {
        job.clock.advance(Seconds{1800});
        CHECK(job.save(step += 10).ok());
      }
      wall = job.clock.wall_seconds();
      if (lose_state && launch == 2) directory->remove("checkpoint.json");
    }
    // 24 saves, half an hour apart: every second one of the older ones, and the newest two.
    std::vector<std::int64_t> kept;
    for (const auto& found : scan_checkpoints(*directory, "ckpt")) kept.push_back(found.name.step);
    std::vector<std::int64_t> expected;
    for (std::int64_t s = 20; s <= 220; s += 20) expected.push_back(s);
    expected.push_back(230);
    expected.push_back(240);
    CHECK(kept == expected);
  }
}

TEST_CASE("hours that are lowered or raised between jobs count from the last one kept") {
  const auto directory = std::make_shared<MemoryDirectory>();
  double wall = 1.7e9;
  std::int64_t step = 0;
  for (const double hours : {1.0, 0.5, 2.0}) {
    Job job(directory, {.max_to_keep = 1, .keep_checkpoint_every_n_hours = hours});
    job.clock = FakeClock(Seconds{0}, wall);
    job.saver();
    for (int save = 0; save < 4; ++save) {
      job.clock.advance(Seconds{1800});
      CHECK(job.save(step += 10).ok());
    }
    wall = job.clock.wall_seconds();
  }
  std::vector<std::int64_t> kept;
  for (const auto& found : scan_checkpoints(*directory, "ckpt")) kept.push_back(found.name.step);
  // 20 by the hour; 40 to 70 by half of one; 110 two hours after 70; the newest.
  CHECK(kept == std::vector<std::int64_t>{20, 40, 50, 60, 70, 110, 120});
}

TEST_CASE("the best stay beside the newest as long as they are, also when the state file is lost") {
  const auto directory = std::make_shared<MemoryDirectory>();
  const SaverOptions options{.max_to_keep = 2, .keep_best = KeepBest{"loss", 2, false}};
  const std::vector<double> losses = {5, 1, 4, 1, 2, 0.5, 9, 8, std::nan("")};
  const std::vector<std::vector<std::int64_t>> kept = {
      {0}, {0, 1}, {1, 2}, {1, 2, 3}, {1, 3, 4}, {3, 4, 5}, {3, 5, 6}, {3, 5, 6, 7}, {3, 5, 7, 8}};
  for (std::size_t step = 0; step < losses.size(); ++step) {
    CAPTURE(step);
    Job job(directory, options);
    job.model.set(static_cast<std::int64_t>(step));
    CHECK(job.saver().start(static_cast<std::int64_t>(step), {"loss", losses[step]}));
    std::vector<std::int64_t> steps;
    for (const auto& found : scan_checkpoints(*directory, "ckpt")) steps.push_back(found.name.step);
    CHECK(steps == kept[step]);
    if (step % 2 == 1) directory->remove("checkpoint.json");
  }
  // Another metric is not compared with this one.
  Job other(directory, {.max_to_keep = 1, .keep_best = KeepBest{"accuracy", 1, true}});
  for (const auto& [step, accuracy] : {std::pair{20, 0.9}, {21, 0.95}, {22, 0.1}}) {
    other.model.set(step);
    CHECK(other.saver().start(step, {"accuracy", accuracy}));
  }
  std::vector<std::int64_t> steps;
  for (const auto& found : scan_checkpoints(*directory, "ckpt")) steps.push_back(found.name.step);
  CHECK(steps == std::vector<std::int64_t>{21, 22});
}

TEST_CASE("what to keep as best is METRIC:K, with a word for which end is best") {
  CHECK(parse_keep_best("loss:3") == KeepBest{"loss", 3, false});
  CHECK(parse_keep_best("test_accuracy:1") == KeepBest{"test_accuracy", 1, true});
  CHECK(parse_keep_best("score:2:max") == KeepBest{"score", 2, true});
  CHECK(parse_keep_best("accuracy:2:min") == KeepBest{"accuracy", 2, false});
  for (const char* wrong : {"", "loss", "loss:", "loss:0", "loss:-1", "loss:x", "loss:1x", ":3",
                            "loss:3:best", "a name that is longer than 31 bytes:2"}) {
    CAPTURE(wrong);
    CHECK_THROWS_AS(parse_keep_best(wrong), UsageError);
  }
}

TEST_CASE("with a key what is saved is signed, and only what is signed is restored") {
  const auto directory = std::make_shared<MemoryDirectory>();
  const auto key = std::make_shared<const MacKey>(std::vector<std::byte>(32, std::byte{9}));
  CHECK(Job(directory, {.key = key}).save(1).ok());
  CHECK(Job(directory).save(2).ok());
  Job job(directory);
  CHECK(job.restore({.key = key})->step == 1);
  CHECK(job.messages->contain("ckpt-00000002.h5 is not signed"));
}

TEST_CASE("slots and buffers that are not finite are not saved, and the log names them") {
  Job job(std::make_shared<MemoryDirectory>());
  job.model.set(1);
  job.model.state.slot_values("velocity")[2] = std::nanf("");
  CHECK_FALSE(job.saver().start(1));
  CHECK(job.messages->contain("'/slots/velocity/dense/weight' has values that are not finite"));
  job.model.set(1);
  job.model.state.buffers()[1] = HUGE_VALF;
  CHECK_FALSE(job.saver().start(1));
  CHECK(job.messages->contain("'/buffers/norm/mean'"));
  CHECK_FALSE(job.saver().take_result());
  CHECK(job.save(1).ok());
}

TEST_CASE("saving a step again is done when the content is the same, and gets a suffix when it is not") {
  const auto directory = std::make_shared<MemoryDirectory>();
  Job job(directory);
  CHECK(job.save(5).name == "ckpt-00000005.h5");
  const auto before = directory->content("ckpt-00000005.h5");
  CHECK(job.save(5).name == "ckpt-00000005.h5");
  CHECK(directory->content("ckpt-00000005.h5") == before);
  job.model.doubles[0] = 99;
  job.saver().start(5);
  CHECK(job.saver().take_result()->name == "ckpt-00000005-1.h5");
  CHECK(directory->content("ckpt-00000005.h5") == before);
  CHECK(job.save(5).name == "ckpt-00000005-2.h5");  // as the first, but the highest wins
  Job next(directory);
  CHECK(next.restore()->name == "ckpt-00000005-2.h5");
  CHECK(next.model.digest() == SmallModel::digest_at(5));
}

TEST_CASE("a damaged file under the name of a step is left alone and does not hinder the save of that step") {
  const auto directory = std::make_shared<MemoryDirectory>();
  Job(directory).save(5);
  directory->content("ckpt-00000005.h5")[300] ^= std::byte{1};
  Job job(directory);
  CHECK(job.save(5).name == "ckpt-00000005-1.h5");
  CHECK(directory->exists("ckpt-00000005.h5"));
}

TEST_CASE("temporary files of a job that is gone are removed, other files are not") {
  const auto directory = std::make_shared<MemoryDirectory>();
  for (const char* name : {".ckpt-00000003.h5.tmp.00000000000000ff", "notes.txt", "events.out.tfevents.1",
                           "ckpt-00000001.h5.damaged-1", ".other.tmp.1"}) {
    directory->create(name)->close();
  }
  Job job(directory, {.max_to_keep = 1});
  job.save(1);
  job.save(2);
  CHECK(names_in(*directory) == Names{".other.tmp.1", "checkpoint.json", "ckpt-00000001.h5.damaged-1",
                                      "ckpt-00000002.h5", "events.out.tfevents.1", "notes.txt"});
}

TEST_CASE("a job that has lost the directory publishes nothing more") {
  const auto directory = std::make_shared<MemoryDirectory>();
  const auto world = std::make_shared<test::FakeIdentity::World>();
  test::FakeIdentity old_identity(world, "a", 1);
  test::FakeIdentity new_identity(world, "b", 2);
  Job old_job(directory, {}, 1);
  InlineExecutor executor;
  DirectoryLock lock(directory, old_job.clock, executor, {}, old_identity);
  CHECK(lock.token() == 1);
  CHECK(old_job.save(1).ok());
  DirectoryLock taken(directory, old_job.clock, executor, {}, new_identity);  // no sign of life for 30 s
  CHECK(taken.token() == 2);
  const SaveResult result = old_job.save(2);
  CHECK_FALSE(result.ok());
  CHECK(result.message.find("taken over by") != std::string::npos);
  CHECK_THROWS_AS(std::rethrow_exception(result.error), EnvironmentError);
  CHECK(scan_checkpoints(*directory, "ckpt").size() == 1);
}

// TF: Saver.testSomeErrors
TEST_CASE("options that make no sense are refused") {
  const auto directory = std::make_shared<MemoryDirectory>();
  CHECK_THROWS_AS(Job(directory, {.max_to_keep = -1}).saver(), UsageError);
  CHECK_THROWS_AS(Job(directory, {.keep_checkpoint_every_n_hours = -1}).saver(), UsageError);
  CHECK_THROWS_AS(Job(directory, {.basename = "../x"}).saver(), UsageError);
  CHECK_THROWS_AS(Job(directory, {.basename = ""}).saver(), UsageError);
  Job job(directory);
  job.model.set(3);
  CHECK_THROWS_AS(job.saver().start(4), InternalError);
}

// The rest asks, for every single call that changes something on the disk: what if it is the last one, or
// fails?

struct History {
  std::optional<std::int64_t> acknowledged;  // newest step that was
  bool completed = false;                    // no fault struck
};

constexpr std::int64_t kSteps = 6;

/// Saves a few steps, with rotation and the lock, as a job would.
void run_job(const std::shared_ptr<Directory>& directory, std::int64_t from, History& history,
             const std::shared_ptr<test::FakeIdentity::World>& world, std::int64_t pid) {
  Job job(directory, {.max_to_keep = 2});
  test::FakeIdentity identity(world, "host", pid);
  std::optional<DirectoryLock> lock;
  try {
    lock.emplace(directory, job.clock, job.executor, job.log, identity);
    job.token = lock->token();
    for (std::int64_t step = from; step < from + kSteps; ++step) {
      const SaveResult result = job.save(step);
      if (result.ok()) {
        history.acknowledged = step;
        CHECK(job.messages->contain("saved checkpoint ckpt-"));
      }
    }
  } catch (const FileError&) {
    // The lock or the first look at the directory failed: the job ends.
  }
  identity.die();
  // A process that is killed runs no destructors; a dead disk ignores what they do.
}

/// What the next job finds must be whole, at least as new as what was acknowledged, and of use.
void check_recovery(const std::shared_ptr<MemoryDisk>& disk, const History& history,
                    const std::shared_ptr<test::FakeIdentity::World>& world) {
  const auto directory = std::make_shared<MemoryDirectory>(disk);
  Job next(directory, {.max_to_keep = 2});
  const auto restored = next.restore();
  if (history.acknowledged) {
    REQUIRE(restored);
    CHECK(restored->step >= *history.acknowledged);
  }
  if (restored) CHECK(next.model.digest() == SmallModel::digest_at(restored->step));
  for (const auto& found : scan_checkpoints(*directory, "ckpt")) {
    CHECK_NOTHROW(CheckpointFile(*directory, found.file));  // never a corrupt file under a final name
  }
  History further;
  run_job(directory, 100, further, world, 999);
  CHECK(further.acknowledged == 100 + kSteps - 1);
  std::size_t temporary = 0;
  for (const std::string& name : names_in(*directory))
    temporary += is_temporary_checkpoint("ckpt", name) ? 1 : 0;
  CHECK(temporary == 0);
  CHECK(scan_checkpoints(*directory, "ckpt").size() == 2);
}

TEST_CASE(
    "nothing acknowledged is lost, whichever call on the disk is the last before a kill or a power cut") {
  long points = 0;
  for (long n = 1;; ++n) {
    CAPTURE(n);
    const auto disk = std::make_shared<MemoryDisk>();
    const auto world = std::make_shared<test::FakeIdentity::World>();
    disk->fail_at = n;
    disk->dies = true;
    History history;
    run_job(std::make_shared<MemoryDirectory>(disk), 0, history, world, 1);
    if (!disk->failed) break;
    for (const auto end :
         {MemoryDisk::End::kill, MemoryDisk::End::cut_forgets_names, MemoryDisk::End::cut_keeps_names}) {
      CAPTURE(static_cast<int>(end));
      check_recovery(disk->reboot(end), history, world);
      ++points;
    }
  }
  MESSAGE("faults tried: ", points);
  CHECK(points > 200);
}

// TF: CheckpointState.testUpdateCheckpointState
TEST_CASE("a call that fails costs at most one save, and no earlier checkpoint") {
  for (const int code : {ENOSPC, EIO, EDQUOT, EROFS}) {
    for (long n = 1;; ++n) {
      CAPTURE(code);
      CAPTURE(n);
      const auto disk = std::make_shared<MemoryDisk>();
      const auto world = std::make_shared<test::FakeIdentity::World>();
      disk->fail_at = n;
      disk->fail_code = code;
      History history;
      run_job(std::make_shared<MemoryDirectory>(disk), 0, history, world, 1);
      if (!disk->failed) break;
      if (history.acknowledged) CHECK(*history.acknowledged >= kSteps - 2);
      check_recovery(disk->reboot(MemoryDisk::End::kill), history, world);
      check_recovery(disk->reboot(MemoryDisk::End::cut_forgets_names), history, world);
    }
  }
}

TEST_CASE("a failed save says what failed and what is kept, and leaves no file behind") {
  const auto disk = std::make_shared<MemoryDisk>();
  const auto directory = std::make_shared<MemoryDirectory>(disk);
  Job job(directory);
  CHECK(job.save(1).ok());
  const Names before = names_in(*directory);
  disk->fail_at = disk->operations + 2;
  disk->fail_code = ENOSPC;
  const SaveResult failed = job.save(2);
  CHECK_FALSE(failed.ok());
  CHECK(failed.message.find("No space left on device") != std::string::npos);
  CHECK(failed.message.find("newest: ckpt-00000001.h5") != std::string::npos);
  CHECK(job.messages->contain(failed.message));
  CHECK(names_in(*directory) == before);
  CHECK(job.saver().last_durable_step() == 1);
  CHECK(job.save(3).ok());
  disk->fail_at = disk->operations + 2;
  job.model.set(4);
  job.saver().start(4);
  CHECK_THROWS_AS(job.saver().wait(), IoError);
  CHECK_NOTHROW(job.saver().wait());
  CHECK_FALSE(job.saver().take_result());
}

}  // namespace
}  // namespace lockstep
