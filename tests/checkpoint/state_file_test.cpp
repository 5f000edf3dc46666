#include <cmath>
#include <limits>
#include <memory>
#include <string>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/probe.hpp>
#include <lockstep/checkpoint/retention.hpp>
#include <lockstep/checkpoint/state_file.hpp>
#include <lockstep/checkpoint/status_file.hpp>

#include "checkpoint_support.hpp"

namespace lockstep {
namespace {

using test::Job;
using test::MemoryDirectory;

StateFile example() {
  StateFile state;
  for (std::int64_t step = 10; step < 40; step += 10) {
    state.checkpoints.push_back({step, to_file_name("ckpt", {step, 0}), std::string(32, 'a'), 1000, 3,
                                 1.7e9 + 0.125 * static_cast<double>(step), step == 10});
  }
  state.last_preserved = 1.7e9;
  state.retired.push_back({"ckpt-00000005.h5", std::string(32, 'b')});
  return state;
}

ParsedStateFile parse(const std::string& text) {
  return parse_state_file(std::as_bytes(std::span(text)));
}

// TF: CheckpointState.testAllModelCheckpointPaths
// TF: CheckpointState.testUpdateCheckpointStateSaveRelativePaths
TEST_CASE("a state file says what was written, with relative names only") {
  const std::string text = to_json(example());
  CHECK(parse(text).state == example());
  CHECK(text.find('/') == std::string::npos);
  CHECK(text.find("\"latest\": \"ckpt-00000030.h5\"") != std::string::npos);
}

TEST_CASE("every prefix of a state file, and every byte changed, is understood or refused with a reason") {
  const std::string text = to_json(example());
  for (std::size_t length = 0; length + 1 < text.size(); ++length) {
    const auto parsed = parse(text.substr(0, length));
    CHECK_FALSE(parsed.state);
    CHECK_FALSE(parsed.problem.empty());
  }
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (const char c : {'\0', '"', '{', ']', '9', '\xff', '-', '.'}) {
      std::string changed = text;
      changed[i] = c;
      const auto parsed = parse(changed);
      CHECK((parsed.state.has_value() != !parsed.problem.empty()));
    }
  }
}

TEST_CASE("names outside the directory and numbers out of range make a state file be refused") {
  const std::string text = to_json(example());
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    return parse(changed).state.has_value();
  };
  CHECK(with("ckpt-00000010.h5", "ckpt-00000099.h5"));
  for (const char* name : {"../ckpt-00000010.h5", "/etc/passwd", "", ".", "..", "a/b", "a b"}) {
    CHECK_FALSE(with("ckpt-00000010.h5", name));
  }
  CHECK(with("ckpt-00000005.h5", "ckpt-00000006.h5"));
  CHECK_FALSE(with("ckpt-00000005.h5", "../ckpt-00000005.h5"));
  CHECK_FALSE(with("\"retired\": [", "\"retired\": [7, "));
  CHECK_FALSE(with(std::string(32, 'b'), std::string(31, 'b')));
  CHECK_FALSE(with("\"step\": 10", "\"step\": -1"));
  CHECK_FALSE(with("\"step\": 10", "\"step\": 1.5"));
  CHECK_FALSE(with("\"step\": 10", "\"step\": 99999999999999999999"));
  CHECK_FALSE(with("\"bytes\": 1000", "\"bytes\": -1000"));
  CHECK_FALSE(with("\"format\": 1", "\"format\": 2"));
  CHECK_FALSE(with("\"preserved\": true", "\"preserved\": 1"));
  CHECK_FALSE(parse(std::string(1'000'000, '[')).state);
}

TEST_CASE("on the word of a state file that does not prove itself nothing is passed over") {
  StateFile state = example();
  state.token = 7;
  const std::string text = to_json(state);
  CHECK(parse(text).state == state);
  // No byte of what it says can be changed so that its token still counts; white space says nothing.
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (const char c : {'0', '9', 'a', '"', ' '}) {
      std::string changed = text;
      changed[i] = c;
      const auto parsed = parse(changed);
      if (parsed.state && parsed.state != state) CHECK(parsed.state->token == 0);
    }
  }
  std::string forged = text;
  forged.replace(forged.find("\"token\": 7"), 10, "\"token\": 8");
  CHECK(parse(forged).state->token == 0);
  CHECK(parse(forged).state->checkpoints == state.checkpoints);
  std::string unsealed = text;
  unsealed.replace(unsealed.find("\"seal\""), 6, "\"sea1\"");
  CHECK(parse(unsealed).state->token == 0);

  const MacKey key(std::vector<std::byte>(16, std::byte{1}));
  const MacKey other(std::vector<std::byte>(16, std::byte{2}));
  const auto with = [](const std::string& json, const MacKey& with_key) {
    return parse_state_file(std::as_bytes(std::span(json)), &with_key).state->token;
  };
  const std::string signed_text = to_json(state, &key);
  CHECK(with(signed_text, key) == 7);
  CHECK(with(signed_text, other) == 0);
  CHECK(with(text, key) == 0);  // anybody can make a seal
  CHECK(parse(signed_text).state == state);
}

TEST_CASE(
    "what a job had no time to delete is deleted by a later one, and is never taken for a strange job's") {
  // A job that owns the directory after another, and is gone or meets an error at each of its calls.
  for (const bool dies : {true, false}) {
    CAPTURE(dies);
    long points = 0;
    long left_over = 0;
    for (long n = 1;; ++n) {
      CAPTURE(n);
      const auto disk = std::make_shared<test::MemoryDisk>();
      const auto directory = std::make_shared<MemoryDirectory>(disk);
      {
        Job first(directory, {.max_to_keep = 2}, 1);
        for (int step = 1; step <= 2; ++step) REQUIRE(first.save_as_owner(step).ok());
      }
      bool struck = false;
      {
        Job second(directory, {.max_to_keep = 2}, 2);
        CHECK(second.restore()->step == 2);
        second.saver();
        disk->fail_at = disk->operations + n;
        disk->dies = dies;
        try {
          for (int step = 3; step <= 4; ++step) second.save_as_owner(step);
        } catch (const FileError&) {
          // The lock of this test is written by hand.
        }
        struck = disk->failed;
      }
      if (!struck) break;
      ++points;
      const auto after = std::make_shared<MemoryDirectory>(disk->reboot(test::MemoryDisk::End::kill));
      if (after->exists(".lock")) after->remove(".lock");
      left_over += scan_checkpoints(*after, "ckpt").size() > 2 ? 1 : 0;
      Job third(after, {.max_to_keep = 2}, 3);
      const auto restored = third.restore();
      REQUIRE(restored);
      for (const DirectoryEntry& entry : after->list()) {
        CAPTURE(entry.name);
        CHECK_FALSE(is_set_aside(entry.name));
      }
      CHECK(third.save_as_owner(10).ok());
      CHECK(scan_checkpoints(*after, "ckpt").size() == 2);
    }
    CHECK(points > 20);
    CHECK(left_over > 0);
  }
}

TEST_CASE("what comes again under the name of something that was deleted is still a strange job's") {
  const auto directory = std::make_shared<MemoryDirectory>();
  {
    Job first(directory, {.max_to_keep = 1}, 1);
    REQUIRE(first.save_as_owner(1).ok());
  }
  {
    Job second(directory, {.max_to_keep = 1}, 2);
    REQUIRE(second.save_as_owner(3).ok());
  }
  const auto retired = read_state_file(*directory).state->retired;
  REQUIRE(retired.size() == 1);
  CHECK(retired[0].file == "ckpt-00000001.h5");
  // The first wakes and writes another one of that step.
  const auto elsewhere = std::make_shared<MemoryDirectory>();
  Job strange(elsewhere, {}, 1);
  strange.clock.advance(Seconds{5});
  REQUIRE(strange.save_as_owner(1).ok());
  directory->disk().names["ckpt-00000001.h5"] = elsewhere->disk().names["ckpt-00000001.h5"];
  Job third(directory, {}, 3);
  CHECK(third.restore()->step == 3);
  CHECK(directory->exists("ckpt-00000001.h5.superseded-1"));
}

// TF: RecoverLastCheckpoints.test_recover_last_checkpoints
TEST_CASE("a lost, torn or lying state file is rebuilt from the directory") {
  const auto directory = std::make_shared<MemoryDirectory>();
  Job job(directory);
  for (int step = 1; step <= 3; ++step) job.save(step);
  const StateFile whole = *read_state_file(*directory).state;
  const auto rebuilt = [&] { return load_state(*directory, "ckpt", job.log).checkpoints; };
  CHECK(rebuilt() == whole.checkpoints);
  directory->content("checkpoint.json").resize(40);
  CHECK(rebuilt() == whole.checkpoints);
  CHECK(job.messages->contain("is rebuilt from the 3 checkpoints"));
  write_state_file(*directory, example());
  CHECK(rebuilt() == whole.checkpoints);
  directory->remove("checkpoint.json");
  CHECK(rebuilt() == whole.checkpoints);
  const std::vector<CheckpointRecord> without{whole.checkpoints[0], whole.checkpoints[2]};
  directory->content("ckpt-00000002.h5").resize(100);
  CHECK(rebuilt() == without);
  // Gone from the disk, with a state file that names it and with none.
  for (const bool named : {true, false}) {
    CAPTURE(named);
    write_state_file(*directory, whole);
    if (named) directory->remove("ckpt-00000002.h5");
    if (!named) directory->remove("checkpoint.json");
    CHECK(rebuilt() == without);
  }
}

TEST_CASE("retention keeps what it should and never the wrong one") {
  StateFile state;
  for (int i = 0; i < 10; ++i) {
    state.checkpoints.push_back({i, to_file_name("ckpt", {i, 0}), "", 1, 1, i * 1800.0, false});
  }
  const auto current = state.checkpoints.back().file;
  CHECK(plan_retention(state, current, {.max_to_keep = 0}).remove.empty());
  CHECK(plan_retention(state, current, {.max_to_keep = 10}).remove.empty());
  const auto plan = plan_retention(state, current, {.max_to_keep = 3});
  CHECK(plan.remove.size() == 7);
  CHECK(plan.state.checkpoints.front().step == 7);
  CHECK(plan.state.checkpoints.back().file == current);
  // One that was just saved stays even if others claim to be newer.
  const auto kept = plan_retention(state, state.checkpoints.front().file, {.max_to_keep = 1});
  CHECK(kept.state.checkpoints.front().step == 0);
  // Every hour: the first (nothing is known of an earlier one), then every second; once kept, kept for good.
  const auto hourly = plan_retention(state, current, {.max_to_keep = 2, .keep_checkpoint_every_n_hours = 1});
  CHECK(hourly.state.checkpoints.size() == 6);
  CHECK(hourly.state.last_preserved == 6 * 1800.0);
  CHECK(plan_retention(hourly.state, current, {.max_to_keep = 2}).remove.empty());
}

TEST_CASE("a status comes back as it was written, and anything else is no status") {
  MemoryDirectory directory;
  CHECK_FALSE(read_status(directory));
  RunStatus status{"stopped", 75, "signal 15 on rank 2: \"\xff\"", 812, 3, 4711, "n1", "slurm-9", 1.75e9};
  write_status(directory, status);
  CHECK(read_status(directory)->exit_code == 75);
  status.reason = "time limit";
  status.exit_code.reset();
  write_status(directory, status);
  CHECK(read_status(directory) == status);
  const auto whole = directory.content("status.json");
  for (std::size_t length = 0; length + 1 < whole.size(); ++length) {
    directory.content("status.json").resize(length);
    CHECK_FALSE(read_status(directory));
    directory.content("status.json") = whole;
  }
}

TEST_CASE("a probe of a good directory leaves nothing, and says what is wrong with a bad one at any call") {
  const auto disk = std::make_shared<test::MemoryDisk>();
  MemoryDirectory directory(disk);
  test::FakeIdentity identity;
  CHECK_NOTHROW(probe_directory(directory, 1000, identity));
  CHECK(directory.list().empty());
  const long calls = disk->operations;
  for (long n = 1; n <= calls; ++n) {
    disk->operations = 0;
    disk->fail_at = n;
    disk->fail_code = ENOSPC;
    try {
      probe_directory(directory, 1000, identity);
      FAIL("accepted");
    } catch (const IoError& error) {
      CHECK(std::string(error.what()).find("No space left on device") != std::string::npos);
      CHECK(std::string(error.what()).find("nothing has been trained yet") != std::string::npos);
    }
    CHECK(directory.list().empty());
  }
  disk->fail_at = 0;
  disk->free_bytes = 1999;
  CHECK_THROWS_AS(probe_directory(directory, 1000, identity), IoError);
  disk->free_bytes = 2000;
  CHECK_NOTHROW(probe_directory(directory, 1000, identity));
}

}  // namespace
}  // namespace lockstep
