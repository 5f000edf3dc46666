#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/existing.hpp>
#include <lockstep/checkpoint/latest.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/mpi/simulated_world.hpp>

#include "checkpoint_support.hpp"

// What the original's Saver and CheckpointManager promise to those who use them by hand.

namespace lockstep {
namespace {

using test::FakeIdentity;
using test::Job;
using test::MemoryDirectory;
using test::SmallModel;

/// A folder of its own, gone at the end; the working directory comes back, too.
class Scratch {
 public:
  Scratch()
      : before_(std::filesystem::current_path()),
        path_(std::filesystem::temp_directory_path() /
              ("lockstep-manager-" + std::to_string(SystemIdentity().nonce()))) {
    std::filesystem::create_directory(path_);
  }
  ~Scratch() {
    std::filesystem::current_path(before_);
    std::filesystem::remove_all(path_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path before_;
  std::filesystem::path path_;
};

std::string name_of(std::int64_t step, const std::string& basename = "ckpt") {
  return to_file_name(basename, {step, 0});
}

std::vector<std::int64_t> steps_in(Directory& directory, const std::string& basename = "ckpt") {
  std::vector<std::int64_t> steps;
  for (const auto& checkpoint : scan_checkpoints(directory, basename)) steps.push_back(checkpoint.name.step);
  return steps;
}

using Steps = std::vector<std::int64_t>;

// TF: Saver.testInt64
TEST_CASE("64-bit integers come back to the last bit, also where a double could not hold them") {
  const auto model = [](std::span<std::int64_t> numbers) {
    State state;
    state.attach("counts", numbers, {static_cast<std::int64_t>(numbers.size())});
    PlainAllocator allocator;
    state.freeze(allocator);
    return state;
  };
  constexpr std::int64_t kBeyondDoubles = (std::int64_t{1} << 53) + 1;
  std::vector<std::int64_t> saved{std::numeric_limits<std::int64_t>::min(), -1, 0, kBeyondDoubles,
                                  std::numeric_limits<std::int64_t>::max()};
  const auto numbers = saved;
  Job job(std::make_shared<MemoryDirectory>());
  State state = model(saved);
  Saver saver(job.directory, state.entries(), {}, job.clock, job.executor, job.log, 0, job.identity);
  state.set_global_step(kBeyondDoubles);
  CHECK(saver.start(kBeyondDoubles));
  std::vector<std::int64_t> restored(saved.size());
  State other = model(restored);
  REQUIRE(restore_latest(Communicator::self(), job.directory.get(), other));
  CHECK(restored == numbers);
  CHECK(other.global_step() == kBeyondDoubles);
}

// TF: Saver.testCacheRereadsFile
TEST_CASE("a checkpoint that was replaced under its name is read anew") {
  const auto directory = std::make_shared<MemoryDirectory>();
  CHECK(Job(directory).save(5).ok());
  Job job(directory);
  CHECK(job.restore()->step == 5);
  CHECK(job.model.doubles[0] == 5.0 / 3);
  const auto other = std::make_shared<MemoryDirectory>();
  Job changed(other);
  changed.model.set(5);
  changed.model.doubles[0] = -8;
  CHECK(changed.saver().start(5));
  directory->disk().names[name_of(5)] = other->disk().names[name_of(5)];
  CHECK(job.restore()->step == 5);
  CHECK(job.model.doubles[0] == -8);
}

// TF: Saver.testAllowEmpty
TEST_CASE("a state without parameters is saved and restored: its step is all there is") {
  const auto empty = [] {
    State state;
    PlainAllocator allocator;
    state.freeze(allocator);
    return state;
  };
  Job job(std::make_shared<MemoryDirectory>());
  State state = empty();
  state.set_global_step(3);
  Saver saver(job.directory, state.entries(), {}, job.clock, job.executor, job.log, 0, job.identity);
  CHECK(saver.start(3));
  State restored = empty();
  REQUIRE(restore_latest(Communicator::self(), job.directory.get(), restored));
  CHECK(restored.global_step() == 3);
}

// TF: Saver.testVarListShouldBeEmptyInDeferredBuild, Saver.testBuildShouldBeCalledBeforeSave
// TF: Saver.testDeferredBuild
TEST_CASE("a saver has no list of its own: it knows what was declared once the state is frozen, not before") {
  State state;
  SaverOptions options{.max_to_keep = 1};
  CHECK_THROWS_AS(static_cast<void>(state.entries()), InternalError);
  state.parameter("late", {2});
  PlainAllocator allocator;
  state.freeze(allocator);
  CHECK_THROWS_AS(state.parameter("too/late", {2}), UsageError);
  Job job(std::make_shared<MemoryDirectory>());
  Saver saver(job.directory, state.entries(), options, job.clock, job.executor, job.log, 0, job.identity);
  CHECK(saver.start(0));
  std::vector<std::string> declared;
  std::vector<std::string> saved;
  for (const Entry& entry : state.entries()) declared.push_back(entry.path);
  const CheckpointFile file(*job.directory, name_of(0));
  for (const Entry& entry : file.entries()) saved.push_back(entry.path);
  std::sort(declared.begin(), declared.end());
  CHECK(saved == declared);
}

// TF: Saver.testSaveToNonexistingPath
TEST_CASE("a directory is made with its parents, or the error names the one that is in the way") {
  const Scratch scratch;
  PosixFileSystem files;
  const auto path = scratch.path() / "not" / "there" / "yet";
  Job job(files.create_directory(path));
  CHECK(job.save(1).ok());
  CHECK(checkpoint_exists(files, path / name_of(1)));
  const auto blocked = path / name_of(1) / "below" / "a" / "file";
  try {
    files.create_directory(blocked);
    FAIL("made a directory below a file");
  } catch (const FileError& error) {
    CHECK(std::string(error.what()).find("below '" + (path / name_of(1)).string() + "'") !=
          std::string::npos);
    CHECK(error.path() == blocked);
  }
}

// TF: Saver.testSaveCopyRestoreWithSaveRelativePaths
TEST_CASE("a directory that was copied, and one that was moved, restore where they are now") {
  const Scratch scratch;
  PosixFileSystem files;
  const auto path = scratch.path() / "first";
  {
    Job job(files.create_directory(path), {.max_to_keep = 2});
    for (const int step : {1, 2, 3}) CHECK(job.save(step).ok());
  }
  const auto copy = scratch.path() / "copy";
  const auto moved = scratch.path() / "deep" / "moved";
  std::filesystem::copy(path, copy);
  std::filesystem::create_directory(moved.parent_path());
  std::filesystem::rename(path, moved);
  for (const auto& place : {copy, moved}) {
    CAPTURE(place);
    Job job(files.open_directory(place), {.max_to_keep = 2});
    CHECK(job.restore()->step == 3);
    CHECK(job.model.digest() == SmallModel::digest_at(3));
    CHECK_FALSE(job.messages->contain("checkpoint.json"));
    // Retention goes on there, with what came along.
    CHECK(job.save(4).ok());
    CHECK(steps_in(*job.directory) == Steps{3, 4});
    CHECK(latest_checkpoint(files, place) == place / name_of(4));
  }
  CHECK_FALSE(std::filesystem::exists(path));
}

// TF: CheckpointState.testRelPath, CheckpointState.testRelativePath
TEST_CASE(
    "a directory may be named by a relative path, and stays the same when the working directory changes") {
  const Scratch scratch;
  PosixFileSystem files;
  std::filesystem::current_path(scratch.path());
  Job job(files.create_directory("runs/a"));
  CHECK(job.save(1).ok());
  std::filesystem::current_path(scratch.path().parent_path());
  CHECK(job.save(2).ok());
  std::filesystem::current_path(scratch.path() / "runs");
  CHECK(steps_in(*files.open_directory("a")) == Steps{1, 2});
  CHECK(latest_checkpoint(files, "a") == std::filesystem::path("a") / name_of(2));
  CHECK(Job(files.open_directory("../runs/./a")).restore()->step == 2);
  std::filesystem::current_path("a");
  CHECK(latest_checkpoint(files, ".") == std::filesystem::path(".") / name_of(2));
  CHECK(checkpoint_exists(files, name_of(2)));
}

TEST_CASE(
    "nothing is acknowledged in a directory that is not at its path any more, and all is well once it is") {
  const Scratch scratch;
  PosixFileSystem files;
  const auto run = scratch.path() / "run";
  const auto away = scratch.path() / "away";
  Job job(files.create_directory(run));
  CHECK(job.save(1).ok());
  std::filesystem::rename(run, away);
  const SaveResult moved = job.save(2);
  CHECK_FALSE(moved.ok());
  CHECK(moved.message.find("moved or removed") != std::string::npos);
  std::filesystem::create_directory(run);  // as when another disk is mounted there
  CHECK_FALSE(job.save(3).ok());
  CHECK(std::filesystem::is_empty(run));
  CHECK(steps_in(*files.open_directory(away)) == Steps{1});
  std::filesystem::remove(run);
  std::filesystem::rename(away, run);
  CHECK(job.save(4).ok());
  CHECK(steps_in(*files.open_directory(run)) == Steps{1, 4});
}

// TF: CheckpointState.testCheckpointExists
TEST_CASE("a checkpoint exists when it is there and whole") {
  const Scratch scratch;
  PosixFileSystem files;
  Job job(files.open_directory(scratch.path()));
  for (const int step : {1, 2}) CHECK(job.save(step).ok());
  const auto path = scratch.path() / name_of(1);
  CHECK(checkpoint_exists(files, path));
  CHECK_FALSE(checkpoint_exists(files, scratch.path() / name_of(7)));
  CHECK_FALSE(checkpoint_exists(files, scratch.path() / "nowhere" / name_of(1)));
  CHECK_FALSE(checkpoint_exists(files, path / name_of(1)));
  CHECK_FALSE(checkpoint_exists(files, scratch.path()));
  CHECK_FALSE(checkpoint_exists(files, scratch.path() / "checkpoint.json"));
  std::filesystem::create_symlink(name_of(1), scratch.path() / name_of(9));
  CHECK_FALSE(checkpoint_exists(files, scratch.path() / name_of(9)));
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  CHECK_FALSE(checkpoint_exists(files, path));
  CHECK(checkpoint_exists(files, scratch.path() / name_of(2)));
}

// TF: CheckpointState.testGetCheckpointMtimes
TEST_CASE("when a checkpoint was saved is in the file, and a copy is no newer") {
  const Scratch scratch;
  PosixFileSystem files;
  Job job(files.open_directory(scratch.path()));
  job.clock = FakeClock(Seconds{0}, 1.6e9);
  CHECK(job.save(1).ok());
  job.clock.advance(Seconds{90.5});
  CHECK(job.save(2).ok());
  CHECK(checkpoint_time(files, scratch.path() / name_of(1)) == 1.6e9);
  CHECK(checkpoint_time(files, scratch.path() / name_of(2)) == 1.6e9 + 90.5);
  std::filesystem::copy(scratch.path() / name_of(1), scratch.path() / "copy");
  CHECK(checkpoint_time(files, scratch.path() / "copy") == 1.6e9);
  CHECK_FALSE(checkpoint_time(files, scratch.path() / name_of(3)));
}

// TF: CheckpointState.testRemoveCheckpoint
TEST_CASE("a checkpoint is removed from directory and state file; one that is gone already is a warning") {
  const Scratch scratch;
  PosixFileSystem files;
  Job job(files.open_directory(scratch.path()));
  for (const int step : {1, 2, 3}) CHECK(job.save(step).ok());
  const auto path = scratch.path() / name_of(3);
  CHECK(remove_checkpoint(files, path, job.log));
  CHECK(steps_in(*job.directory) == Steps{1, 2});
  CHECK(read_state_file(*job.directory).state->checkpoints.size() == 2);
  CHECK(Job(job.directory).restore()->step == 2);
  CHECK_FALSE(job.messages->contain("gone"));
  CHECK_FALSE(remove_checkpoint(files, path, job.log));
  CHECK(job.messages->contain("'" + path.string() + "' is gone already"));
  CHECK_FALSE(remove_checkpoint(files, scratch.path() / "nowhere" / name_of(1), job.log));
  CHECK_THROWS_AS(remove_checkpoint(files, scratch.path() / "checkpoint.json"), UsageError);
  CHECK_THROWS_AS(remove_checkpoint(files, scratch.path() / "precious.h5"), UsageError);
  // A damaged one goes as well; and with the last, nothing is named that a new run would miss.
  std::filesystem::resize_file(scratch.path() / name_of(2), 7);
  CHECK(remove_checkpoint(files, scratch.path() / name_of(2)));
  CHECK(remove_checkpoint(files, scratch.path() / name_of(1)));
  CHECK_FALSE(Job(job.directory).restore());
  // Beside a job that owns the directory nothing is removed.
  Job owner(job.directory, {}, 1);
  CHECK(owner.save_as_owner(4).ok());
  job.directory->create(".lock")->close();
  CHECK_THROWS_AS(remove_checkpoint(files, scratch.path() / name_of(4)), EnvironmentError);
  CHECK(checkpoint_exists(files, scratch.path() / name_of(4)));
}

// TF: CheckpointManager.testClockReset
TEST_CASE("a clock that runs backwards deletes nothing that hours would have kept, and says so") {
  const auto directory = std::make_shared<MemoryDirectory>();
  std::int64_t step = 0;
  const auto launch = [&](double wall, int saves) {
    Job job(directory, {.max_to_keep = 1, .keep_checkpoint_every_n_hours = 2});
    job.clock = FakeClock(Seconds{0}, wall);
    job.saver();
    for (int i = 0; i < saves; ++i) {
      job.clock.advance(Seconds{3600});
      CHECK(job.save(++step).ok());
    }
    return job.messages->contain("the clock runs backwards");
  };
  CHECK_FALSE(launch(1.7e9, 5));  // 2 and 4 stay for good, 5 is the newest
  CHECK(steps_in(*directory) == Steps{2, 4, 5});
  // Five years back: until then every save would have been older than the last that was kept.
  CHECK(launch(1.5e9, 5));
  // 5 is an hour after 4 and goes; 6 is the first by the new clock and stays, then every second one.
  CHECK(steps_in(*directory) == Steps{2, 4, 6, 8, 10});
  CHECK_FALSE(launch(1.5e9 + 5 * 3600, 2));
  CHECK(steps_in(*directory) == Steps{2, 4, 6, 8, 10, 12});
  // A correction of some seconds is no such thing.
  CHECK_FALSE(launch(1.5e9 + 7 * 3600 - 30, 2));
}

// TF: CheckpointManager.testCustomCheckpointPrefix
TEST_CASE(
    "checkpoints may have another basename, and a run never starts anew beside some of another in silence") {
  const auto directory = std::make_shared<MemoryDirectory>();
  Job job(directory, {.max_to_keep = 2, .basename = "big-model"});
  for (const int step : {1, 2, 3}) CHECK(job.save(step).ok());
  CHECK(steps_in(*directory, "big-model") == Steps{2, 3});
  CHECK(directory->exists("big-model-00000003.h5"));
  CHECK(steps_in(*directory).empty());
  CHECK(steps_in(*directory, "big").empty());
  CHECK(is_checkpoint_name("big-model-00000003.h5"));
  Job same(directory, {.basename = "big-model"});
  CHECK(same.restore()->name == "big-model-00000003.h5");
  Job other(directory);
  try {
    static_cast<void>(other.restore());
    FAIL("started anew");
  } catch (const DataError& error) {
    CHECK(
        std::string(error.what()).find("such as big-model-00000002.h5, and none with the basename 'ckpt'") !=
        std::string::npos);
  }
  CHECK_FALSE(other.restore({.fresh = true}));
  CHECK(steps_in(*directory, "big-model") == Steps{2, 3});
}

// TF: CheckpointManager.testRestoreOrInitialize
TEST_CASE("what is there is restored, else all ranks get what the chief initializes") {
  const auto directory = std::make_shared<MemoryDirectory>();
  for (const bool there : {false, true}) {
    int calls = 0;
    SimulatedWorld{.ranks = 3, .seed = 4}.run([&](const Communicator& world) {
      SmallModel model;
      model.set(99);
      const auto restored =
          restore_or_initialize(world, world.is_chief() ? directory.get() : nullptr, model.state, [&] {
            ++calls;
            if (!world.is_chief()) return;
            model.set(7);
            model.state.set_global_step(0);
          });
      CHECK(restored.has_value() == there);
      CHECK(model.state.global_step() == (there ? 12 : 0));
      CHECK(model.doubles[0] == (there ? 12.0 / 3 : 7.0 / 3));
      CHECK(model.state.parameter_tensors()[0].values()[0] == (there ? 12.5F : 7.5F));
    });
    CHECK(calls == (there ? 0 : 3));
    CHECK(Job(directory).save(12).ok());
  }
}

TEST_CASE("a checkpoint that cannot be read just now keeps its name, and is taken again when it can") {
  /// The newest gives an error, as a disk in trouble does.
  class Troubled final : public Directory {
   public:
    explicit Troubled(std::shared_ptr<MemoryDirectory> real) : real_(std::move(real)) {}
    const std::filesystem::path& path() const override { return real_->path(); }
    std::unique_ptr<WritableFile> create(const std::string& name) override { return real_->create(name); }
    std::unique_ptr<ReadableFile> open(const std::string& name) override {
      class Unreadable final : public ReadableFile {
       public:
        explicit Unreadable(std::unique_ptr<ReadableFile> file) : file_(std::move(file)) {}
        std::uint64_t size() const override { return file_->size(); }
        std::size_t read(std::uint64_t offset, std::span<std::byte> bytes) override {
          if (offset < 100) throw FileError("read", "ckpt", EIO);
          return file_->read(offset, bytes);
        }

       private:
        std::unique_ptr<ReadableFile> file_;
      };
      if (name == name_of(3)) return std::make_unique<Unreadable>(real_->open(name));
      return real_->open(name);
    }
    bool exists(const std::string& name) override { return real_->exists(name); }
    std::vector<DirectoryEntry> list() override { return real_->list(); }
    void replace(const std::string& from, const std::string& to) override { real_->replace(from, to); }
    void rename(const std::string& from, const std::string& to) override { real_->rename(from, to); }
    void remove(const std::string& name) override { real_->remove(name); }
    void sync() override { real_->sync(); }
    std::uint64_t available_bytes() override { return real_->available_bytes(); }

   private:
    std::shared_ptr<MemoryDirectory> real_;
  };
  const auto directory = std::make_shared<MemoryDirectory>();
  Job first(directory);
  for (const int step : {1, 2, 3}) CHECK(first.save(step).ok());
  directory->content(name_of(2))[90] ^= std::byte{1};
  Job troubled(std::make_shared<Troubled>(directory));
  CHECK(troubled.restore()->step == 1);
  CHECK(troubled.messages->contain("Input/output error"));
  CHECK(directory->exists(name_of(3)));
  CHECK(directory->exists(name_of(2) + ".damaged-1"));  // that one was seen to be damaged
  CHECK(Job(directory).restore()->step == 3);
}

}  // namespace
}  // namespace lockstep
