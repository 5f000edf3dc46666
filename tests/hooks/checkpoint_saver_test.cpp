#include <algorithm>
#include <limits>
#include <utility>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/hooks/checkpoint_saver.hpp>

#include "fake_context.hpp"
#include "summary_support.hpp"

namespace lockstep {
namespace {

using Steps = std::vector<std::int64_t>;

/// Counts what it hears.
class Listener final : public CheckpointSaverListener {
 public:
  void begin() override { ++begun; }
  void before_save(std::int64_t step) override { before.push_back(step); }
  bool after_save(std::int64_t step) override {
    after.push_back(step);
    return step == stop_after;
  }
  void end(std::int64_t step) override { ended.push_back(step); }

  int begun = 0;
  Steps before;
  Steps after;
  Steps ended;
  std::int64_t stop_after = -1;
};

/// Creates files until told not to.
class FaultyDirectory final : public Directory {
 public:
  explicit FaultyDirectory(std::unique_ptr<Directory> real) : real_(std::move(real)) {}
  bool full = false;

  const std::filesystem::path& path() const override { return real_->path(); }
  std::unique_ptr<WritableFile> create(const std::string& name) override {
    if (full) throw FileError("write", path() / name, 28);
    return real_->create(name);
  }
  std::unique_ptr<ReadableFile> open(const std::string& name) override { return real_->open(name); }
  bool exists(const std::string& name) override { return real_->exists(name); }
  std::vector<DirectoryEntry> list() override { return real_->list(); }
  void replace(const std::string& from, const std::string& to) override { real_->replace(from, to); }
  void rename(const std::string& from, const std::string& to) override { real_->rename(from, to); }
  void remove(const std::string& name) override { real_->remove(name); }
  void sync() override { real_->sync(); }
  std::uint64_t available_bytes() override { return real_->available_bytes(); }

 private:
  std::unique_ptr<Directory> real_;
};

/// Runs tasks when somebody waits for them: a background that is as late as can be.
class LateExecutor final : public Executor {
 public:
  std::unique_ptr<Worker> start(const std::string&) override {
    class Late final : public Worker {
     public:
      void post(std::function<void()> task) override { tasks_.push_back(std::move(task)); }
      void wait() override {
        for (const auto& task : std::exchange(tasks_, {})) task();
      }
      bool idle() const override { return tasks_.empty(); }

     private:
      std::vector<std::function<void()>> tasks_;
    };
    return std::make_unique<Late>();
  }
  std::unique_ptr<Periodic> every(const std::string& name, Seconds interval,
                                  std::function<void()> task) override {
    return InlineExecutor().every(name, interval, std::move(task));
  }
};

/// A hook with its saver in a folder, as a session would make them.
struct Fixture {
  explicit Fixture(CheckpointSaverHook::Options options) : listener(std::make_shared<Listener>()) {
    options.listeners.push_back(listener);
    hook = std::make_unique<CheckpointSaverHook>(std::move(options));
    context.model.parameter("w", {3});
    PlainAllocator allocator;
    context.model.freeze(allocator);
  }
  ~Fixture() { hook->attach(nullptr, std::nullopt); }
  Fixture(const Fixture&) = delete;
  Fixture& operator=(const Fixture&) = delete;

  void create(std::int64_t step = 0, std::optional<std::int64_t> restored = std::nullopt) {
    context.model.set_global_step(step);
    begin(restored);
    hook->after_create_session(context);
  }
  /// As tests of the original drive a hook: without after_create_session, so that the first run saves.
  void begin(std::optional<std::int64_t> restored = std::nullopt) {
    hook->begin(context);
    hook->attach(std::make_shared<Saver>(directory, context.model.entries(), SaverOptions{.max_to_keep = 0},
                                         *context.time, *executor, context.log(), 0, identity),
                 restored);
  }
  void steps(int count, double seconds = 0) {
    for (int i = 0; i < count; ++i) {
      context.time->advance(Seconds{seconds});
      context.model.parameters()[0] += 1;
      context.step(*hook);
    }
  }
  /// The newest saved step after each run that makes `steps_per_run` steps and takes so many seconds.
  Steps newest_after(const std::vector<double>& seconds, std::int64_t steps_per_run = 1) {
    Steps newest;
    for (const double duration : seconds) {
      context.time->advance(Seconds{duration});
      context.model.set_global_step(context.global_step() + steps_per_run - 1);
      context.step(*hook);
      newest.push_back(saved().back());
    }
    return newest;
  }
  Steps saved() const {
    Steps found;
    for (const auto& entry : directory->list()) {
      if (const auto name = parse_file_name(kDefaultBasename, entry.name)) found.push_back(name->step);
    }
    std::ranges::sort(found);
    return found;
  }

  test::Folder folder;
  std::shared_ptr<FaultyDirectory> directory =
      std::make_shared<FaultyDirectory>(PosixFileSystem().open_directory(folder.path));
  std::shared_ptr<Executor> executor = std::make_shared<InlineExecutor>();
  SystemIdentity identity;
  test::FakeContext context;
  std::shared_ptr<Listener> listener;
  std::unique_ptr<CheckpointSaverHook> hook;
};

}  // namespace

// TF: CheckpointSaverHook.test_raise_in_none_secs_and_steps
TEST_CASE("a saver needs an interval above 0") {
  CHECK_THROWS_AS(CheckpointSaverHook({}), UsageError);
  CHECK_THROWS_AS(CheckpointSaverHook({.save_steps = 0}), UsageError);
  CHECK_THROWS_AS(CheckpointSaverHook({.save_secs = -1.0}), UsageError);
}

// TF: CheckpointSaverHook.test_raise_in_both_secs_and_steps
// Here either one fires.
TEST_CASE("with both intervals whichever comes first saves, and both begin anew") {
  Fixture f({.save_secs = 10.0, .save_steps = 4});
  f.create();
  f.steps(5);  // by steps, at 4
  f.context.time->advance(Seconds{10});
  f.steps(1);  // by seconds, at 6
  f.steps(4);  // by steps, at 10
  CHECK(f.saved() == Steps{0, 4, 6, 10});
}

// TF: CheckpointSaverHook.test_save_secs_saves_in_first_step
// TF: CheckpointSaverHook.test_save_steps_saves_in_first_step
TEST_CASE("driven without after_create_session the first run saves") {
  for (const bool by_seconds : {false, true}) {
    Fixture f(by_seconds ? CheckpointSaverHook::Options{.save_secs = 2.0}
                         : CheckpointSaverHook::Options{.save_steps = 2});
    f.begin();
    CHECK(f.saved().empty());
    f.steps(1);
    CHECK(f.saved() == Steps{1});
  }
}

// TF: CheckpointSaverHook.test_save_steps_saves_in_first_step_with_steps_per_run
// TF: CheckpointSaverHook.test_save_steps_saves_periodically_with_steps_per_run
// TF: CheckpointSaverHook.test_save_steps_saves_at_end_with_steps_per_run
TEST_CASE("five steps a run, N = 10: saved after 5, 15 and 25, and what is left at the end") {
  Fixture f({.save_steps = 10});
  f.begin();
  CHECK(f.newest_after({0, 0, 0, 0, 0}, 5) == Steps{5, 5, 15, 15, 25});
  Fixture ends({.save_steps = 10});
  ends.begin();
  CHECK(ends.newest_after({0, 0}, 5) == Steps{5, 5});
  ends.hook->end(ends.context);
  CHECK(ends.saved() == Steps{5, 10});
}

// TF: CheckpointSaverHook.test_save_steps_saves_periodically
TEST_CASE("N = 2 from the first run on: the newest is 1, 1, 3, 3, 5") {
  Fixture f({.save_steps = 2});
  f.begin();
  CHECK(f.newest_after({0, 0, 0, 0, 0}) == Steps{1, 1, 3, 3, 5});
}

// TF: CheckpointSaverHook.test_save_secs_saves_periodically
// TF: CheckpointSaverHook.test_save_secs_calls_listeners_periodically
TEST_CASE("2 s from the first run on: saves at 1, 3, 6 and at the end, each heard by listeners") {
  Fixture f({.save_secs = 2.0});
  f.begin();
  CHECK(f.newest_after({0, 1, 1, 0.5, 0.5, 1.5, 1}) == Steps{1, 1, 3, 3, 3, 6, 6});
  f.hook->end(f.context);
  CHECK(f.saved() == Steps{1, 3, 6, 7});
  CHECK(f.listener->before == f.saved());
  CHECK(f.listener->after == f.saved());
}

// TF: CheckpointSaverHook.test_save_checkpoint_before_first_train_step
// TF: CheckpointManager.testCheckpointInterval
TEST_CASE("saves at 0, N and 2N") {
  Fixture f({.save_steps = 2});
  f.create();
  CHECK(f.saved() == Steps{0});
  f.steps(1);
  CHECK(f.saved() == Steps{0});
  f.steps(4);
  CHECK(f.saved() == Steps{0, 2, 4});
}

TEST_CASE("saves when seconds have passed since the last save") {
  Fixture f({.save_secs = 2.0});
  f.create();
  f.steps(7, 0.75);  // 0.75, 1.5, 2.25 (save), 3.0, 3.75, 4.5 (save), 5.25
  CHECK(f.saved() == Steps{0, 3, 6});
}

// TF: CheckpointManager.testCheckpointIntervalWithRestore
TEST_CASE("a restored step is not saved again, and counts as the first of the interval") {
  Fixture f({.save_steps = 3});
  f.create(4, 4);
  CHECK(f.saved().empty());
  f.steps(3);
  CHECK(f.saved() == Steps{7});
}

// TF: CheckpointSaverHook.test_save_saves_at_end
TEST_CASE("the end saves once: not a step that an interval has saved") {
  for (const int steps : {4, 5}) {
    Fixture f({.save_steps = 2});
    f.create();
    f.steps(steps);
    f.hook->end(f.context);
    CHECK(f.saved() == (steps == 4 ? Steps{0, 2, 4} : Steps{0, 2, 4, 5}));
    CHECK(f.listener->begun == 1);
    CHECK(f.listener->before == f.saved());
    CHECK(f.listener->after == f.saved());
    CHECK(f.listener->ended == Steps{steps});
  }
}

TEST_CASE("steps = 1, two steps: a listener hears of 0, 1, 2") {
  Fixture f({.save_steps = 1});
  f.create();
  f.steps(2);
  f.hook->end(f.context);
  CHECK(f.listener->before == Steps{0, 1, 2});
  CHECK(f.listener->after == Steps{0, 1, 2});
  CHECK(f.listener->begun == 1);
  CHECK(f.listener->ended == Steps{2});
}

TEST_CASE("a listener stops the run after a save, once it is durable") {
  Fixture f({.save_steps = 2});
  f.listener->stop_after = 2;
  f.create();
  f.steps(2);
  CHECK(f.context.asked.empty());
  f.steps(1);
  CHECK(f.context.asked ==
        std::vector<std::string>{"a checkpoint listener asked for it after saving step 2"});
}

// TF: CheckpointSaverHook.test_save_secs_calls_listeners_at_begin_and_end
TEST_CASE("a run of one step and its end: a listener begins once, hears two saves and ends once") {
  Fixture f({.save_secs = 2.0});
  f.create();
  f.steps(1);
  f.hook->end(f.context);
  CHECK(f.listener->begun == 1);
  CHECK(f.listener->before.size() == 2);
  CHECK(f.listener->after.size() == 2);
  CHECK(f.listener->ended.size() == 1);
}

TEST_CASE("a worker has no saver: it writes nothing and its listeners hear nothing") {
  Fixture f({.save_steps = 1});
  f.context.my_rank = 1;
  f.hook->begin(f.context);
  f.hook->after_create_session(f.context);
  f.steps(2);
  f.hook->end(f.context);
  CHECK(f.saved().empty());
  CHECK(f.listener->begun == 0);
  CHECK(f.listener->before.empty());
  CHECK(f.listener->ended.empty());
}

TEST_CASE("a rank's wish for a save is heard in the tally") {
  Fixture f({.save_steps = 100});
  f.create();
  f.steps(1);
  Tally tally(3);
  tally.say(Says::save);
  f.context.step(*f.hook, {}, tally);
  CHECK(f.saved() == Steps{0, 2});
}

TEST_CASE("values that are not finite are never published") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    Fixture f({.save_steps = 1});
    f.create();
    f.steps(1);
    f.context.model.parameters()[2] = bad;
    f.steps(1);
    f.hook->end(f.context);
    CHECK(f.saved() == Steps{0, 1});
    CHECK(f.context.messages->lines.back().find("step 2 is not saved: '/model/w'") == 0);
  }
  Fixture f({.save_steps = 1});
  f.create();
  f.context.model.parameters()[2] = std::numeric_limits<float>::max();
  f.context.model.parameters()[1] = std::numeric_limits<float>::denorm_min();
  f.steps(1);
  CHECK(f.saved() == Steps{0, 1});
}

TEST_CASE("a failed save is tried again at the next interval; a final one that fails is an error") {
  Fixture f({.save_steps = 2});
  f.create();
  f.directory->full = true;
  f.steps(2);
  f.directory->full = false;
  f.steps(2);
  CHECK(f.saved() == Steps{0, 4});
  f.steps(1);
  f.directory->full = true;
  CHECK_THROWS_AS(f.hook->end(f.context), IoError);
  CHECK(f.listener->ended == Steps{5});
}

TEST_CASE("the failure of the final save is not hidden by an earlier one that went well") {
  Fixture f({.save_steps = 2});
  f.create();
  f.steps(2);  // saved, and nobody has looked at the result yet
  f.context.model.parameters()[0] += 1;
  f.hook->save_again();
  f.directory->full = true;
  CHECK_THROWS_AS(f.hook->end(f.context), IoError);
  CHECK(f.listener->after == Steps{0, 2});
}

TEST_CASE("a failure of the final save is told when the background comes to it late, and so are successes") {
  for (const bool full : {false, true}) {
    Fixture f({.save_steps = 2});
    f.executor = std::make_shared<LateExecutor>();
    f.create();
    f.steps(3);
    f.directory->full = full;
    if (full) {
      CHECK_THROWS_AS(f.hook->end(f.context), IoError);
      CHECK(f.saved() == Steps{0});
    } else {
      f.hook->end(f.context);
      CHECK(f.saved() == Steps{0, 2, 3});
      CHECK(f.listener->after == Steps{0, 2, 3});
    }
    CHECK(f.listener->ended == Steps{3});
  }
}

TEST_CASE("a step whose save failed is saved again at the end") {
  Fixture f({.save_steps = 2});
  f.create();
  f.directory->full = true;
  f.steps(2);
  f.directory->full = false;
  f.hook->end(f.context);
  CHECK(f.saved() == Steps{0, 2});
}

TEST_CASE("stop_on_failure turns a failed save into an error of the next step") {
  Fixture f({.save_steps = 2, .stop_on_failure = true});
  f.create();
  f.directory->full = true;
  f.steps(2);
  CHECK_THROWS_AS(f.steps(1), IoError);
}

TEST_CASE("what changed after the step was saved is saved at the end, under a higher name") {
  Fixture f({.save_steps = 2});
  f.create();
  f.steps(2);
  f.context.model.parameters()[0] = 42;
  f.hook->save_again();
  f.hook->end(f.context);
  CHECK(f.saved() == Steps{0, 2, 2});
}

}  // namespace lockstep
