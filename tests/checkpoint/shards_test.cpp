#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/existing.hpp>
#include <lockstep/checkpoint/latest.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/shards.hpp>

#include "checkpoint_support.hpp"

namespace lockstep {
namespace {

using test::Job;
using test::MemoryDirectory;
using test::MemoryDisk;
using test::SmallModel;

std::vector<std::string> shard_files(MemoryDirectory& directory) {
  std::vector<std::string> names;
  for (const auto& [name, inode] : directory.disk().names) {
    if (is_shard_name("ckpt", name)) names.push_back(name);
  }
  return names;
}

/// No two saves have the same, whichever job they are of.
std::uint64_t next_nonce() {
  static std::uint64_t nonce = 0;
  return ++nonce;
}

/// The part of a session: writers of three ranks, and the chief's saver.
struct ShardedJob : Job {
  explicit ShardedJob(std::shared_ptr<MemoryDirectory> where, SaverOptions saver_options = {},
                      std::uint64_t job_token = 0)
      : Job(where, std::move(saver_options), job_token) {
    const std::vector<ShardPart> parts = {{{0, 5}}, {{5, 20}}, {{20, model.state.parameter_elements()}}};
    CutState cut = cut_into_shards(model.state, parts);
    manager = std::make_unique<Saver>(where, cut.manifest, options, clock, executor, log, token, identity,
                                      cut.table);
    for (std::size_t k = 0; k < parts.size(); ++k) {
      writers.push_back(std::make_unique<ShardWriter>(
          where, cut.shards[k],
          ShardWriter::Options{options.basename, static_cast<int>(k), token, true, options.key}, clock,
          executor));
    }
  }

  SaveResult save_in_shards(std::int64_t step, float more = 0) {
    model.set(step);
    model.state.parameters()[7] += more;
    const std::uint64_t nonce = next_nonce();
    for (const auto& writer : writers) writer->start(step, nonce);
    manager->start(step, {}, nonce);
    std::string problem;
    for (const auto& writer : writers) {
      writer->wait();
      if (problem.empty()) problem = writer->problem();
    }
    for (const auto& writer : writers) problem.empty() ? writer->hand_over() : writer->discard();
    problem.empty() ? manager->commit() : manager->abandon(problem);
    return *manager->take_result();
  }

  std::unique_ptr<Saver> manager;
  std::vector<std::unique_ptr<ShardWriter>> writers;
};

TEST_CASE("the name of a shard is taken for one in its canonical spelling alone") {
  const std::string name = shard_name("ckpt", 0x12ab, 3);
  CHECK(name == "ckpt.00000000000012ab.shard3.h5");
  CHECK(is_shard_name("ckpt", name));
  CHECK(is_plain_name(name));
  for (const char* other :
       {"ckpt.00000000000012AB.shard3.h5", "ckpt.00000000000012ab.shard03.h5",
        "ckpt.00000000000012ab.shard-3.h5", "ckpt.00000000000012ab.shard.h5",
        "ckpt.0000000000012ab.shard3.h5", "ckpt-00000000000012ab.shard3.h5",
        "ckpt.00000000000012ab.shard3.h5.damaged-1", "ckpt.h5", "x.00000000000012ab.shard3.h5",
        "ckpt.                .shard3.h5", "ckpt.+000000000012ab.shard3.h5"}) {
    CAPTURE(other);
    CHECK_FALSE(is_shard_name("ckpt", other));
  }
  CHECK_FALSE(is_checkpoint_name(name));
}

TEST_CASE("a checkpoint in shards restores to the same state, and has the digest of one in a single file") {
  const auto directory = std::make_shared<MemoryDirectory>();
  {
    ShardedJob job(directory);
    const SaveResult result = job.save_in_shards(7);
    REQUIRE(result.ok());
    CHECK(result.name == "ckpt-00000007.h5");
  }
  CHECK(shard_files(*directory).size() == 3);
  const CheckpointFile file(*directory, "ckpt-00000007.h5");
  CHECK(file.digest() == SmallModel::digest_at(7));
  CHECK(file.shards() == shard_files(*directory));
  file.check_structure();
  for (const std::string& shard : file.shards()) CheckpointFile(*directory, shard).check_structure();
  const auto weight = file.find("/model/dense/weight");
  REQUIRE(weight != nullptr);
  CHECK(weight->shape == Shape{4, 3});
  CHECK_THROWS_AS(CheckpointFile(*directory->open("ckpt-00000007.h5"), "ckpt-00000007.h5"), DataError);

  Job next(directory);
  const auto restored = next.restore();
  REQUIRE(restored);
  CHECK(restored->step == 7);
  CHECK(next.model.digest() == SmallModel::digest_at(7));
}

TEST_CASE("any damage to a shard or its manifest, or a shard of another save, resumes from the one before") {
  const auto good = std::make_shared<MemoryDirectory>();
  ShardedJob(good, {.max_to_keep = 0}).save_in_shards(1);
  const auto of_first = shard_files(*good);
  {
    ShardedJob job(good, {.max_to_keep = 0});
    REQUIRE(job.save_in_shards(2).ok());
  }
  const auto of_second = CheckpointFile(*good, "ckpt-00000002.h5").shards();
  std::vector<std::string> victims = of_second;
  victims.emplace_back("ckpt-00000002.h5");
  const auto restores_the_first = [&](const std::function<void(MemoryDirectory&)>& damage) {
    const auto directory = std::make_shared<MemoryDirectory>(good->disk().reboot(MemoryDisk::End::kill));
    damage(*directory);
    Job job(directory);
    const auto restored = job.restore();
    REQUIRE(restored);
    CHECK(restored->step == 1);
    CHECK(job.model.digest() == SmallModel::digest_at(1));
    CHECK(job.messages->contain("trying the next older checkpoint"));
    // What is left of the other is for the user to look at, and the next save is not hindered by it.
    CHECK(directory->exists("ckpt-00000002.h5.damaged-1"));
    CHECK(job.save(2).ok());
    ShardedJob further(directory, {.max_to_keep = 0});
    CHECK(further.save_in_shards(3).ok());
    Job last(directory);
    CHECK(last.restore()->step == 3);
  };
  for (const std::string& victim : victims) {
    CAPTURE(victim);
    const std::size_t size = good->content(victim).size();
    for (std::size_t at = 0; at < size; at += 97) {
      CAPTURE(at);
      restores_the_first([&](MemoryDirectory& directory) { directory.content(victim)[at] ^= std::byte{16}; });
    }
    restores_the_first([&](MemoryDirectory& directory) { directory.content(victim).resize(size / 2); });
    restores_the_first([&](MemoryDirectory& directory) { directory.content(victim).resize(0); });
  }
  for (std::size_t k = 0; k < of_second.size(); ++k) {
    restores_the_first([&](MemoryDirectory& directory) { directory.remove(of_second[k]); });
    restores_the_first([&](MemoryDirectory& directory) {
      directory.content(of_second[k]) = directory.content(of_first[k]);
    });
    restores_the_first([&](MemoryDirectory& directory) {
      directory.content(of_second[k]).swap(directory.content(of_second[(k + 1) % of_second.size()]));
    });
  }
}

/// What somebody who has `key`, or none, can make of a file: `change` its values, and let everything fit
/// again.
void forge(MemoryDirectory& directory, const std::string& name, const MacKey* key,
           const std::function<void(std::span<std::byte> image)>& change) {
  const auto file = directory.open(name);
  const Trailer trailer = read_trailer(*file, name);
  const auto index = read_index(*file, name);
  auto content = directory.content(name);
  content.resize(static_cast<std::size_t>(trailer.image_bytes));
  change(content);
  const auto end = build_trailer(content, trailer, index, key);
  content.insert(content.end(), end.begin(), end.end());
  directory.content(name) = content;
}

void put_text(std::span<std::byte> image, const std::string& from, const std::string& to) {
  const auto bytes = std::as_bytes(std::span(from));
  const auto found = std::search(image.begin(), image.end(), bytes.begin(), bytes.end());
  REQUIRE(found != image.end());
  std::ranges::copy(std::as_bytes(std::span(to)), found);
}

TEST_CASE("with a key manifest and shards are signed, and nothing that others make of them is read") {
  const auto key_of = [](int letter) {
    return std::make_shared<const MacKey>(std::vector<std::byte>(32, static_cast<std::byte>(letter)));
  };
  const auto key = key_of('k');
  const auto other = key_of('o');
  const auto good = std::make_shared<MemoryDirectory>();
  {
    ShardedJob job(good, {.max_to_keep = 0, .key = key});
    REQUIRE(job.save_in_shards(1).ok());
    REQUIRE(job.save_in_shards(2).ok());
  }
  const std::string manifest = "ckpt-00000002.h5";
  const CheckpointFile file(*good, manifest, key.get());
  CHECK(file.digest() == SmallModel::digest_at(2));
  const auto shards = file.shards();
  REQUIRE(shards.size() == 3);
  for (const std::string& shard : shards) CHECK(read_trailer(*good->open(shard), shard).is_signed);
  CHECK_NOTHROW(CheckpointFile(*good, manifest));
  const auto with_another = [&] { CheckpointFile(*good, manifest, other.get()); };
  CHECK_THROWS_WITH_AS(with_another(), doctest::Contains("another key"), DataError);

  const auto of_first = CheckpointFile(*good, "ckpt-00000001.h5", key.get()).shards();
  const auto refused = [&](const std::string& reason, const std::function<void(MemoryDirectory&)>& attack) {
    CAPTURE(reason);
    const auto directory = std::make_shared<MemoryDirectory>(good->disk().reboot(MemoryDisk::End::kill));
    attack(*directory);
    CHECK_NOTHROW(verify_file(*directory->open(manifest), manifest));  // without the key all is well
    Job job(directory);
    const auto restored = job.restore({.key = key});
    REQUIRE(restored);
    CHECK(restored->step == 1);
    CHECK(job.messages->contain(reason));
  };
  const auto flip = [](std::span<std::byte> image) { image[image.size() / 2] ^= std::byte{1}; };
  const auto nothing = [](std::span<std::byte>) {};
  const auto digest_of_file = [](MemoryDirectory& directory, const std::string& name) {
    return read_trailer(*directory.open(name), name).digest.hex();
  };
  // Whoever changes a shard has to change the manifest, which names its digest.
  for (const MacKey* has : {static_cast<const MacKey*>(nullptr), other.get()}) {
    const std::string reason = has == nullptr ? "not signed" : "another key";
    refused(reason, [&](MemoryDirectory& directory) { forge(directory, manifest, has, nothing); });
    refused(reason, [&](MemoryDirectory& directory) {
      const std::string before = digest_of_file(directory, shards[1]);
      forge(directory, shards[1], has, flip);
      forge(directory, manifest, has, [&](std::span<std::byte> image) {
        put_text(image, before, digest_of_file(directory, shards[1]));
      });
      CHECK_NOTHROW(CheckpointFile(directory, manifest));
    });
    refused("another file than the one it was saved with",
            [&](MemoryDirectory& directory) { forge(directory, shards[1], key.get(), flip); });
  }
  // Each shard by itself, were the manifest of those who signed none.
  refused("not signed", [&](MemoryDirectory& directory) {
    const std::string before = digest_of_file(directory, shards[1]);
    forge(directory, shards[1], nullptr, nothing);
    forge(directory, manifest, key.get(),
          [&](std::span<std::byte> image) { put_text(image, before, digest_of_file(directory, shards[1])); });
  });
  refused("another file than the one it was saved with",
          [&](MemoryDirectory& directory) { directory.content(shards[1]) = directory.content(of_first[1]); });
}

TEST_CASE("a shard of another save of the same step is not taken for one") {
  const auto directory = std::make_shared<MemoryDirectory>();
  ShardedJob job(directory, {.max_to_keep = 0});
  REQUIRE(job.save_in_shards(2).ok());
  const SaveResult second = job.save_in_shards(2, 1);
  CHECK(second.name == "ckpt-00000002-1.h5");
  const auto mine = CheckpointFile(*directory, second.name).shards();
  const auto other = CheckpointFile(*directory, "ckpt-00000002.h5").shards();
  directory->content(mine[1]) = directory->content(other[1]);
  CHECK_THROWS_AS(CheckpointFile(*directory, second.name), DataError);
  Job next(directory);
  CHECK(next.restore()->name == "ckpt-00000002.h5");
}

TEST_CASE("rotation and removal take the shards along, and no others") {
  const auto directory = std::make_shared<MemoryDirectory>();
  ShardedJob job(directory, {.max_to_keep = 2});
  for (std::int64_t step = 1; step <= 5; ++step) REQUIRE(job.save_in_shards(step).ok());
  CHECK(scan_checkpoints(*directory, "ckpt").size() == 2);
  CHECK(shard_files(*directory).size() == 6);
  Job whole(directory, {.max_to_keep = 2});
  for (std::int64_t step = 6; step <= 7; ++step) REQUIRE(whole.save(step).ok());
  CHECK(shard_files(*directory).empty());
}

TEST_CASE("a shard that fails is no save: it says why, leaves nothing, and the next one goes well") {
  const auto directory = std::make_shared<MemoryDirectory>();
  ShardedJob job(directory, {.max_to_keep = 0});
  REQUIRE(job.save_in_shards(1).ok());
  // Every call of a save, until one is not reached.
  for (long n = 1;; ++n) {
    CAPTURE(n);
    MemoryDisk& disk = directory->disk();
    disk.failed = false;
    disk.fail_at = disk.operations + n;
    disk.fail_code = ENOSPC;
    const SaveResult result = job.save_in_shards(1 + n);
    disk.fail_at = 0;
    if (!disk.failed) break;
    if (result.ok()) continue;  // after the save was acknowledged
    CHECK(result.message.find("No space left on device") != std::string::npos);
    CHECK_THROWS_AS(std::rethrow_exception(result.error), IoError);
  }
  Job next(directory);
  REQUIRE(next.restore());
  const std::size_t manifests = scan_checkpoints(*directory, "ckpt").size();
  // All there is belongs to a checkpoint once the next owner has looked.
  const ShardedJob owner(directory, {.max_to_keep = 0});
  CHECK(shard_files(*directory).size() == 3 * manifests);
}

TEST_CASE("values that are not finite in any shard are not saved, and the message names them") {
  const auto directory = std::make_shared<MemoryDirectory>();
  ShardedJob job(directory);
  const auto poisoned = [&](std::int64_t step) {
    job.model.set(step);
    job.model.state.slot_values("velocity")[17] = std::numeric_limits<float>::infinity();
    const std::uint64_t nonce = next_nonce();
    for (const auto& writer : job.writers) writer->start(step, nonce);
    return job.writers[1]->problem();
  };
  CHECK(poisoned(3).find("/slots/velocity/dense/bias") != std::string::npos);
  for (const auto& writer : job.writers) writer->discard();
  CHECK(shard_files(*directory).empty());
  CHECK(job.save_in_shards(4).ok());
}

TEST_CASE(
    "shards of a save that never ended go with the next owner, unless an unreadable checkpoint has them") {
  const auto directory = std::make_shared<MemoryDirectory>();
  {
    ShardedJob job(directory, {.max_to_keep = 0});
    REQUIRE(job.save_in_shards(1).ok());
    REQUIRE(job.save_in_shards(2).ok());
  }
  const auto mine = shard_files(*directory);
  directory->create(shard_name("ckpt", 0xabc, 0))->write(std::as_bytes(std::span("not a shard", 11)));
  { const ShardedJob owner(directory, {.max_to_keep = 0}); }
  CHECK(shard_files(*directory) == mine);
  directory->content("ckpt-00000002.h5")[10] ^= std::byte{1};
  { const ShardedJob owner(directory, {.max_to_keep = 0}); }
  CHECK(shard_files(*directory) == mine);
  directory->remove("ckpt-00000002.h5");
  { const ShardedJob owner(directory, {.max_to_keep = 0}); }
  CHECK(shard_files(*directory).size() == 3);
  CHECK(CheckpointFile(*directory, "ckpt-00000001.h5").digest() == SmallModel::digest_at(1));
}

TEST_CASE("a manifest of a job that had lost the directory is not published, and its shards go") {
  const auto directory = std::make_shared<MemoryDirectory>();
  ShardedJob job(directory, {}, 3);
  const std::string lock =
      R"({"host":"h","boot_id":"b","pid":1,"start_time":1,"job":"","restarts":0,"since":0,"token":4,"nonce":"n"})";
  directory->create(".lock")->write(std::as_bytes(std::span(lock)));
  const SaveResult result = job.save_in_shards(1);
  CHECK_FALSE(result.ok());
  CHECK(result.message.find("taken over") != std::string::npos);
  CHECK(shard_files(*directory).empty());
  CHECK(scan_checkpoints(*directory, "ckpt").empty());
}

TEST_CASE("nothing acknowledged in shards is lost, whichever call is the last before a kill or a power cut") {
  long points = 0;
  for (long n = 1;; ++n) {
    CAPTURE(n);
    const auto disk = std::make_shared<MemoryDisk>();
    std::optional<std::int64_t> acknowledged;
    bool struck = false;
    {
      const auto directory = std::make_shared<MemoryDirectory>(disk);
      ShardedJob job(directory, {.max_to_keep = 2});
      disk->fail_at = disk->operations + n;
      disk->dies = true;
      for (std::int64_t step = 1; step <= 5; ++step) {
        if (job.save_in_shards(step).ok()) acknowledged = step;
      }
      struck = disk->failed;
    }
    if (!struck) break;
    for (const auto end :
         {MemoryDisk::End::kill, MemoryDisk::End::cut_forgets_names, MemoryDisk::End::cut_keeps_names}) {
      CAPTURE(static_cast<int>(end));
      const auto directory = std::make_shared<MemoryDirectory>(disk->reboot(end));
      for (const auto& found : scan_checkpoints(*directory, "ckpt")) {
        CHECK_NOTHROW(CheckpointFile(*directory, found.file));  // never a name without its shards
      }
      Job next(directory);
      const auto restored = next.restore();
      CHECK(restored.has_value() >= acknowledged.has_value());
      if (restored && acknowledged) CHECK(restored->step >= *acknowledged);
      if (restored) CHECK(next.model.digest() == SmallModel::digest_at(restored->step));
      ShardedJob further(directory, {.max_to_keep = 2});
      for (std::int64_t step = 10; step <= 12; ++step) CHECK(further.save_in_shards(step).ok());
      CHECK(scan_checkpoints(*directory, "ckpt").size() == 2);
      CHECK(shard_files(*directory).size() == 6);
      ++points;
    }
  }
  MESSAGE("faults tried: ", points);
  CHECK(points > 200);
}

}  // namespace
}  // namespace lockstep
