#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/latest.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/trailer.hpp>
#include <lockstep/mpi/simulated_world.hpp>

#include "checkpoint_support.hpp"

namespace lockstep {
namespace {

using test::Job;
using test::MemoryDirectory;
using test::Messages;
using test::SmallModel;

std::shared_ptr<MemoryDirectory> directory_with(const std::vector<std::int64_t>& steps) {
  auto directory = std::make_shared<MemoryDirectory>();
  Job job(directory, {.max_to_keep = 0});
  for (const std::int64_t step : steps) job.save(step);
  return directory;
}

std::string name_of(std::int64_t step) {
  return to_file_name("ckpt", {step, 0});
}

TEST_CASE("an empty directory restores nothing and leaves the state as it is") {
  Job job(std::make_shared<MemoryDirectory>());
  job.model.set(7);
  CHECK_FALSE(job.restore());
  CHECK(job.model.digest() == SmallModel::digest_at(7));
}

TEST_CASE("damage to all but the oldest resumes from the oldest, loudly, and sets the damaged aside") {
  const auto directory = directory_with({1, 2, 3});
  directory->content(name_of(3))[200] ^= std::byte{4};
  directory->content(name_of(2)).resize(500);
  Job job(directory);
  const auto restored = job.restore();
  REQUIRE(restored);
  CHECK(restored->step == 1);
  CHECK(restored->name == name_of(1));
  CHECK(job.model.digest() == SmallModel::digest_at(1));
  CHECK(job.messages->contain("ckpt-00000003.h5 is damaged at offset 0"));
  CHECK(job.messages->contain("ckpt-00000002.h5 is damaged at offset"));
  CHECK(directory->exists("ckpt-00000003.h5.damaged-1"));
  CHECK(directory->exists("ckpt-00000002.h5.damaged-1"));
  CHECK(job.save(2).name == name_of(2));
}

TEST_CASE("when none verifies it is an error that names each, and nothing is renamed") {
  const auto directory = directory_with({1, 2});
  for (const int step : {1, 2}) directory->content(name_of(step))[99] ^= std::byte{1};
  Job job(directory);
  job.model.set(50);
  try {
    static_cast<void>(job.restore());
    FAIL("restored");
  } catch (const DataError& error) {
    const std::string text = error.what();
    CHECK(text.find("none of the 2 checkpoints") != std::string::npos);
    CHECK(text.find(name_of(1)) != std::string::npos);
    CHECK(text.find(name_of(2)) != std::string::npos);
    CHECK(text.find("--fresh") != std::string::npos);
  }
  CHECK(directory->exists(name_of(1)));
  CHECK(directory->exists(name_of(2)));
  CHECK(job.model.digest() == SmallModel::digest_at(50));
}

// TF: CheckpointState.testCheckPointStateFailsWhenIncomplete
TEST_CASE("whatever the state file holds, the newest checkpoint that verifies is taken") {
  const auto good = directory_with({1, 2, 3});
  const std::string text = to_json(*read_state_file(*good).state);
  std::vector<std::string> contents = {
      "", "{", "[]", "null", "{\"format\":1}", std::string(100000, '['), std::string(5000, '\0'), "\xff\xfe"};
  for (std::size_t length = 0; length < text.size(); length += 7) contents.push_back(text.substr(0, length));
  // It lies: names others, or paths outside.
  for (const auto& [from, to] :
       std::vector<std::pair<std::string, std::string>>{{"ckpt-00000003.h5", "ckpt-00000009.h5"},
                                                        {"ckpt-00000003.h5", "../ckpt-00000003.h5"},
                                                        {"\"step\": 3", "\"step\": 300"},
                                                        {"\"bytes\"", "\"bites\""}}) {
    std::string changed = text;
    for (auto at = changed.find(from); at != std::string::npos; at = changed.find(from, at + to.size())) {
      changed.replace(at, from.size(), to);
    }
    contents.push_back(changed);
  }
  for (const std::string& content : contents) {
    CAPTURE(content);
    const auto bytes = std::as_bytes(std::span(content));
    good->content("checkpoint.json").assign(bytes.begin(), bytes.end());
    Job job(good);
    CHECK(job.restore()->step == 3);
    CHECK(job.saver().checkpoints().size() == 3);
  }
  good->remove("checkpoint.json");
  Job job(good);
  CHECK(job.restore()->step == 3);
}

TEST_CASE("checkpoints that the state file names and that are gone are an error, not a fresh start") {
  const auto directory = directory_with({1, 2});
  for (const int step : {1, 2}) directory->remove(name_of(step));
  Job job(directory);
  CHECK_THROWS_AS(static_cast<void>(job.restore()), DataError);
  CHECK_FALSE(job.restore({.fresh = true}));
}

TEST_CASE("fresh sets every checkpoint aside and deletes none") {
  const auto directory = directory_with({1, 2});
  Job job(directory);
  CHECK_FALSE(job.restore({.fresh = true}));
  CHECK(directory->exists("ckpt-00000001.h5.superseded-1"));
  CHECK(directory->exists("ckpt-00000002.h5.superseded-1"));
  CHECK(job.save(1).name == name_of(1));
  Job again(directory);
  CHECK_FALSE(again.restore({.fresh = true}));
  CHECK(directory->exists("ckpt-00000001.h5.superseded-2"));
}

// TF: CheckpointState.testCheckPointCompletesRelativePaths
TEST_CASE("an exact file is restored, what is newer is set aside, and what is older stays") {
  const auto directory = directory_with({1, 2, 3});
  Job job(directory);
  CHECK(job.restore({.exact_file = name_of(2)})->step == 2);
  CHECK(directory->exists(name_of(1)));
  CHECK(directory->exists(name_of(2)));
  CHECK(directory->exists("ckpt-00000003.h5.superseded-1"));
  CHECK(Job(directory).restore()->step == 2);
  CHECK(Job(directory).restore({.exact_file = "ckpt-00000003.h5.superseded-1"})->step == 3);
}

// TF: Saver.testInvalidPath
TEST_CASE("an exact file that is damaged, missing or no base name is an error, whatever else there is") {
  const auto directory = directory_with({1, 2, 3});
  directory->content(name_of(2))[77] ^= std::byte{1};
  CHECK_THROWS_AS(static_cast<void>(Job(directory).restore({.exact_file = name_of(2)})), DataError);
  CHECK_THROWS_AS(static_cast<void>(Job(directory).restore({.exact_file = name_of(9)})), DataError);
  CHECK_THROWS_AS(static_cast<void>(Job(directory).restore({.exact_file = "../x"})), UsageError);
  CHECK(directory->exists(name_of(3)));
}

TEST_CASE("a verified checkpoint of another model ends the search: an older one is not taken in silence") {
  const auto directory = directory_with({1, 2});
  SmallModel other(5);
  CHECK_THROWS_AS(static_cast<void>(restore_latest(Communicator::self(), directory.get(), other.state)),
                  EnvironmentError);
  SmallModel seed(3, "8");
  CHECK_THROWS_AS(static_cast<void>(restore_latest(Communicator::self(), directory.get(), seed.state)),
                  EnvironmentError);
  CHECK(restore_latest(Communicator::self(), directory.get(), seed.state, {.allow_change = {"seed"}})->step ==
        2);
}

TEST_CASE("a checkpoint under the name of another step is not taken for it") {
  const auto directory = directory_with({1, 2});
  directory->rename(name_of(1), name_of(900));
  Job job(directory);
  CHECK(job.restore()->step == 2);
  CHECK(directory->exists("ckpt-00000900.h5.damaged-1"));
}

TEST_CASE("what a job wrote after it had lost the directory is passed over") {
  const auto directory = std::make_shared<MemoryDirectory>();
  Job(directory, {}, 1).save_as_owner(10);
  Job(directory, {}, 2).save_as_owner(20);
  Job(directory, {}, 1).save_as_owner(30);  // token 1, although token 2 was given out
  Job job(directory);
  CHECK(job.restore()->step == 20);
  CHECK(job.messages->contain("passing over ckpt-00000030.h5"));
  CHECK(directory->exists("ckpt-00000030.h5.superseded-1"));
}

TEST_CASE(
    "what a job publishes after it has lost the directory is passed over before its successor has saved") {
  const auto directory = std::make_shared<MemoryDirectory>();
  Job old_job(directory, {}, 1);
  CHECK(old_job.save_as_owner(10).ok());
  // Its next save comes as far as the rename, which happens only when it wakes.
  const auto ten = directory->disk().names;
  CHECK(old_job.save_as_owner(20).ok());
  const auto twenty = directory->disk().names.at(name_of(20));
  directory->disk().names = ten;
  Job successor(directory, {}, 2);
  CHECK(successor.restore()->step == 10);
  successor.saver();  // has the directory from now on, and dies before its first save
  directory->disk().names[name_of(20)] = twenty;
  Job next(directory, {}, 3);
  CHECK(next.restore()->step == 10);
  CHECK(next.messages->contain("did not know of it"));
  CHECK(directory->exists("ckpt-00000020.h5.superseded-1"));
  // With nothing else left, the work of such a job is better than none.
  directory->rename("ckpt-00000020.h5.superseded-1", name_of(20));
  directory->content(name_of(10))[100] ^= std::byte{1};
  CHECK(Job(directory, {}, 4).restore()->step == 20);
}

TEST_CASE("a forged state file with a high token hides no checkpoint, unless it proves itself") {
  const MacKey key(std::vector<std::byte>(16, std::byte{1}));
  for (const bool with_key : {false, true}) {
    CAPTURE(with_key);
    const auto directory = std::make_shared<MemoryDirectory>();
    SaverOptions options{.max_to_keep = 0};
    if (with_key) options.key = std::make_shared<const MacKey>(key);
    Job job(directory, options, 1);
    for (const int step : {1, 2, 3}) CHECK(job.save_as_owner(step).ok());
    StateFile forged = *read_state_file(*directory, options.key.get()).state;
    CHECK(forged.token == 1);
    forged.token = 99;
    forged.checkpoints.resize(1);
    const auto restored_step = [&](const std::string& text) {
      auto& content = directory->content("checkpoint.json");
      const auto bytes = std::as_bytes(std::span(text));
      content.assign(bytes.begin(), bytes.end());
      Job next(directory, options);
      RestoreOptions restore;
      restore.key = options.key;
      return next.restore(restore)->step;
    };
    std::string text = to_json(forged);
    text.replace(text.find("\"seal\""), 6, "\"sea1\"");
    CHECK(restored_step(text) == 3);
    // With a key, what anybody can seal is not enough.
    if (with_key) CHECK(restored_step(to_json(forged)) == 3);
    CHECK_FALSE(directory->exists(name_of(3) + ".superseded-1"));
    // A later owner's own word: a job that had lost the directory wrote the others.
    CHECK(restored_step(to_json(forged, options.key.get())) == 1);
    CHECK(directory->exists(name_of(3) + ".superseded-1"));
  }
}

TEST_CASE("a part is taken by name alone: all problems are told, and nothing else is touched") {
  const auto directory = directory_with({8});
  const CheckpointFile file(*directory, name_of(8));
  SmallModel model;
  model.set(1);
  const Digest before = model.digest();
  CHECK_THROWS_AS(restore_part(file, model.state.entries(), {}), UsageError);
  CHECK_THROWS_AS(restore_part(file, model.state.entries(), {"/session/global_step"}), UsageError);
  CHECK_THROWS_AS(restore_part(file, model.state.entries(), {"/config/seed"}), UsageError);
  SmallModel wider(5);
  try {
    restore_part(file, wider.state.entries(), {"/model/dense/", "/model/none", "/buffers/norm/mean"});
    FAIL("restored");
  } catch (const EnvironmentError& error) {
    const std::string text = error.what();
    CHECK(text.find("different '/model/dense/weight': f32 [4, 3] (the model expects f32 [4, 5])") !=
          std::string::npos);
    CHECK(text.find("different '/model/dense/bias'") != std::string::npos);
    CHECK(text.find("the model has no '/model/none'") != std::string::npos);
    CHECK(text.find("norm") == std::string::npos);
  }
  CHECK(model.digest() == before);
  CHECK(restore_part(file, model.state.entries(), {"/model/dense/", "/model/dense/bias"}) == 2);
  CHECK(model.state.parameter_tensors()[0].values()[0] == 8.5F);
  CHECK(model.state.slot_values("velocity")[0] == 1.25F);
  CHECK(model.state.global_step() == 1);
}

TEST_CASE("the latest checkpoint is the newest that verifies, in a copy of the directory too") {
  PosixFileSystem files;
  const auto folder = std::filesystem::temp_directory_path() /
                      ("lockstep-latest-" + std::to_string(SystemIdentity().nonce()));
  CHECK_THROWS_AS(latest_checkpoint(files, folder), FileError);
  {
    const std::shared_ptr<Directory> directory = files.create_directory(folder);
    CHECK_FALSE(latest_checkpoint(files, folder));
    Job job(directory);
    for (const int step : {1, 2}) CHECK(job.save(step).ok());
  }
  CHECK(latest_checkpoint(files, folder) == folder / name_of(2));
  const auto copy = folder / "copy";
  std::filesystem::create_directory(copy);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.is_regular_file()) std::filesystem::copy_file(entry.path(), copy / entry.path().filename());
  }
  std::filesystem::resize_file(copy / name_of(2), 100);
  CHECK(latest_checkpoint(files, copy) == copy / name_of(1));
  CHECK(Job(files.open_directory(copy)).restore()->step == 1);
  std::filesystem::remove_all(folder);
}

// TF: Sharded.testBasics
TEST_CASE("all ranks hold the restored values, with arenas of their own or shared in a node") {
  for (const int ranks : {1, 2, 3, 5}) {
    for (const bool own_arenas : {true, false}) {
      CAPTURE(ranks);
      CAPTURE(own_arenas);
      const auto directory = directory_with({1, 2});
      SimulatedWorld{.ranks = ranks, .ranks_per_node = own_arenas ? 0 : 2, .seed = 3}.run(
          [&](const Communicator& world) {
            SmallModel model;
            RestoreOptions options;
            if (!own_arenas) {
              // As if every rank led a node, which is the same for what a rank sees.
              options.shared_arenas = SharedArenas{world.split(0, world.rank())};
            }
            const auto restored =
                restore_latest(world, world.is_chief() ? directory.get() : nullptr, model.state, options);
            CHECK(restored->step == 2);
            CHECK(restored->name == name_of(2));
            CHECK(model.digest() == SmallModel::digest_at(2));
          });
    }
  }
}

TEST_CASE("only leaders receive shared arenas, and every rank receives what is its own") {
  const auto directory = directory_with({4});
  SimulatedWorld{.ranks = 4, .ranks_per_node = 2, .seed = 5}.run([&](const Communicator& world) {
    const Communicator node = world.split_by_node();
    const bool leads = node.rank() == 0;
    const Communicator side = world.split(leads ? 0 : 1, world.rank());
    SmallModel model;
    model.set(0);
    RestoreOptions options;
    options.shared_arenas = SharedArenas{leads ? std::optional(side) : std::nullopt};
    static_cast<void>(
        restore_latest(world, world.is_chief() ? directory.get() : nullptr, model.state, options));
    CHECK(model.state.global_step() == 4);
    CHECK(model.doubles[2] == 4.0 / 3);
    CHECK(model.state.parameter_tensors()[0].values()[0] == (leads ? 4.5F : 0.5F));
  });
}

TEST_CASE("a failed restore is the same error on every rank") {
  const auto directory = directory_with({1});
  directory->content(name_of(1))[50] ^= std::byte{1};
  int failures = 0;
  SimulatedWorld{.ranks = 3, .seed = 1}.run([&](const Communicator& world) {
    SmallModel model;
    try {
      static_cast<void>(restore_latest(world, world.is_chief() ? directory.get() : nullptr, model.state));
    } catch (const DataError& error) {
      CHECK(std::string(error.what()).find("ckpt-00000001.h5") != std::string::npos);
      ++failures;
    }
  });
  CHECK(failures == 3);
}

}  // namespace
}  // namespace lockstep
