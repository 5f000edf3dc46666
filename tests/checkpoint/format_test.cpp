#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <hdf5.h>
#include <sys/resource.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/image.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/trailer.hpp>

#include "checkpoint_support.hpp"

namespace lockstep {
namespace {

using test::MemoryDirectory;
using test::SmallModel;

constexpr const char* kName = "ckpt-00000042.h5";

void write_plain(Directory& directory, const std::string& name, std::span<const std::byte> bytes) {
  const auto file = directory.create(name);
  file->write(bytes);
  file->close();
}

/// Puts a trailer behind any image, as somebody would who knows the format.
void write_signed(Directory& directory, const std::string& name, std::vector<std::byte> image,
                  std::int64_t step = 42) {
  const auto trailer = build_trailer(image, {step, 1, 1.7e9});
  image.insert(image.end(), trailer.begin(), trailer.end());
  write_plain(directory, name, image);
}

std::vector<std::byte> image_at(SmallModel& model, std::int64_t step) {
  model.set(step);
  CheckpointImage image(model.state.entries());
  CHECK(image.snapshot() == nullptr);
  return {image.bytes().begin(), image.bytes().end()};
}

void write_small(Directory& directory) {
  SmallModel model;
  write_signed(directory, kName, image_at(model, 42));
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

// TF: CheckpointState.testNameCollision
TEST_CASE("only the canonical name of a checkpoint is taken for one") {
  CHECK(to_file_name("ckpt", {1200, 0}) == "ckpt-00001200.h5");
  CHECK(to_file_name("ckpt", {1200, 2}) == "ckpt-00001200-2.h5");
  CHECK(to_file_name("my-run", {1234567890123, 0}) == "my-run-1234567890123.h5");
  for (const CheckpointName name : {CheckpointName{0, 0}, {7, 1}, {123456789, 0}, {99999999, 12}}) {
    CHECK(parse_file_name("ckpt", to_file_name("ckpt", name)) == name);
    CHECK(parse_file_name("a-1", to_file_name("a-1", name)) == name);
  }
  // Not even one whose base name is that of the state file collides with it.
  for (const char* basename : {"checkpoint", "checkpoint.json"}) {
    CHECK(to_file_name(basename, {0, 0}) != kStateFileName);
    CHECK_FALSE(parse_file_name(basename, kStateFileName));
    CHECK_FALSE(is_temporary_checkpoint(basename, ".checkpoint.json.tmp"));
  }
  for (const char* wrong :
       {"ckpt-1200.h5", "ckpt-000001200.h5", "ckpt-00001200.h5.damaged-1", ".ckpt-00001200.h5.tmp.0",
        "ckpt-.h5", "ckpt-00001200-.h5", "ckpt-00001200-0.h5", "ckpt-00001200-01.h5", "ckpt-+0001200.h5",
        "ckpt--0001200.h5", "ckpt-00001200.h5 ", "Ckpt-00001200.h5", "ckpt-99999999999999999999.h5", "ckpt",
        "", "ckpt.h5", "checkpoint.json"}) {
    CAPTURE(wrong);
    CHECK_FALSE(parse_file_name("ckpt", wrong));
  }
  CHECK(CheckpointName{5, 1} > CheckpointName{5, 0});
  CHECK(CheckpointName{6, 0} > CheckpointName{5, 9});
  CHECK(is_temporary_checkpoint("ckpt", temporary_name("ckpt-00000001.h5", 77)));
  CHECK_FALSE(is_temporary_checkpoint("ckpt", ".checkpoint.json.tmp"));
  CHECK_FALSE(is_temporary_checkpoint("ckpt", "ckpt-00000001.h5"));
  CHECK(is_set_aside(damaged_name("ckpt-00000001.h5", 1)));
  CHECK_FALSE(is_set_aside("ckpt-00000001.h5"));
}

TEST_CASE("names with folders, links to parents or odd letters are not plain") {
  for (const char* wrong : {"", ".", "..", "a/b", "../a", "/a", ".hidden", "a b", "a\n", "\xc3\xa4"}) {
    CHECK_FALSE(is_plain_name(wrong));
  }
  CHECK_FALSE(is_plain_name(std::string(129, 'a')));
  CHECK(is_plain_name(std::string(128, 'a')));
}

// TF: Saver.testBasicsWithListOfVariables, Saver.testVariables
TEST_CASE("a checkpoint gives back every name, type, shape and byte, and the digest of the state") {
  MemoryDirectory directory;
  SmallModel saved;
  write_signed(directory, kName, image_at(saved, 42));
  const CheckpointFile file(directory, kName);
  CHECK(file.step() == 42);
  CHECK(file.digest() == saved.digest());
  CHECK(file.digest("/model/") == saved.state.parameters_digest());
  CHECK(file.entries().size() == saved.state.entries().size());
  SmallModel restored;
  restore_into(file, restored.state.entries());
  CHECK(restored.digest() == saved.digest());
  CHECK(restored.state.global_step() == 42);
}

TEST_CASE("equal states give equal images, whatever was in memory before") {
  SmallModel first;
  SmallModel second;
  const auto image = image_at(first, 9);
  CHECK(image == image_at(second, 9));
  second.set(1);
  CheckpointImage reused(second.state.entries());
  reused.snapshot();
  second.set(9);
  reused.snapshot();
  CHECK(std::ranges::equal(image, reused.bytes()));
}

TEST_CASE("a snapshot names what is not finite, in numbers of any kind and at any place") {
  constexpr std::size_t kCount = 37;
  std::vector<float> floats(kCount, -3.5F);
  std::vector<double> doubles(kCount, 1e300);
  std::vector<std::int64_t> integers(kCount, -1);  // as floats these bits would be no numbers
  State state;
  state.attach("floats", floats, {kCount});
  state.attach("doubles", doubles, {kCount});
  state.attach("integers", integers, {kCount});
  PlainAllocator allocator;
  state.freeze(allocator);
  CheckpointImage image(state.entries());
  CHECK(image.snapshot() == nullptr);
  for (std::size_t i = 0; i < kCount; ++i) {
    for (const double bad : {std::nan(""), -std::nan(""), std::numeric_limits<double>::infinity(),
                             -std::numeric_limits<double>::infinity()}) {
      floats[i] = static_cast<float>(bad);
      REQUIRE(image.snapshot() != nullptr);
      CHECK(image.snapshot()->path == "/model/floats");
      floats[i] = std::numeric_limits<float>::max();
      doubles[i] = bad;
      REQUIRE(image.snapshot() != nullptr);
      CHECK(image.snapshot()->path == "/model/doubles");
      doubles[i] = -std::numeric_limits<double>::max();
      CHECK(image.snapshot() == nullptr);
    }
  }
}

TEST_CASE("entries that cannot lie in one file are refused") {
  float value = 1;
  auto* data = reinterpret_cast<std::byte*>(&value);
  CHECK_THROWS_AS(CheckpointImage({{"/a", ElementType::f32, {}, data}, {"/a/b", ElementType::f32, {}, data}}),
                  UsageError);
  CHECK_THROWS_AS(CheckpointImage({{"/a/b", ElementType::f32, {}, data}, {"/a", ElementType::f32, {}, data}}),
                  UsageError);
  CHECK_THROWS_AS(CheckpointImage({{"/a", ElementType::text, {0}, data}}), UsageError);
}

TEST_CASE("every single bit that flips is found") {
  MemoryDirectory directory;
  write_small(directory);
  auto& bytes = directory.content(kName);
  MESSAGE("bytes: ", bytes.size());
  long silent = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[i] ^= std::byte{1} << bit;
      try {
        verify_file(*directory.open(kName), kName);
        ++silent;
      } catch (const DataError&) {
      }
      bytes[i] ^= std::byte{1} << bit;
    }
  }
  CHECK(silent == 0);
  CHECK_NOTHROW(verify_file(*directory.open(kName), kName));
}

TEST_CASE("every truncation and every continuation is found") {
  MemoryDirectory directory;
  write_small(directory);
  const auto whole = directory.content(kName);
  long silent = 0;
  for (std::size_t length = 0; length < whole.size(); ++length) {
    directory.content(kName).assign(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
    if (error_of([&] { verify_file(*directory.open(kName), kName); }).empty()) ++silent;
  }
  directory.content(kName) = whole;
  for (int more = 0; more < 200; ++more) {
    directory.content(kName).push_back(std::byte(more % 3));
    if (error_of([&] { verify_file(*directory.open(kName), kName); }).empty()) ++silent;
  }
  CHECK(silent == 0);
}

TEST_CASE("damage is told with the name of the file and the offset of its block") {
  MemoryDirectory directory;
  std::vector<std::byte> image((std::size_t{3} << 20) + 100, std::byte{7});
  write_signed(directory, kName, image);
  directory.content(kName)[(std::size_t{2} << 20) + 5] ^= std::byte{1};
  const std::string error = error_of([&] { verify_file(*directory.open(kName), kName); });
  CHECK(error.find(kName) != std::string::npos);
  CHECK(error.find("at offset 2097152") != std::string::npos);
  // A zeroed page and one of ones, which weak checksums mix up.
  for (const std::byte fill : {std::byte{0}, std::byte{0xff}}) {
    directory.content(kName).assign(image.begin(), image.end());
    const auto trailer = build_trailer(image, {42, 1, 1.7e9});
    directory.content(kName).insert(directory.content(kName).end(), trailer.begin(), trailer.end());
    CHECK_NOTHROW(verify_file(*directory.open(kName), kName));
    std::fill_n(directory.content(kName).begin() + 4096, 4096, fill);
    CHECK_FALSE(error_of([&] { verify_file(*directory.open(kName), kName); }).empty());
  }
}

TEST_CASE("damage is told with the tensors that lie there, or as damage of the structure or of the trailer") {
  MemoryDirectory directory;
  State state;
  std::vector<std::pair<std::string, std::size_t>> tensors = {{"first", 5000}, {"second", 2000}, {"a", 100},
                                                              {"b", 100},      {"c", 100},       {"d", 100},
                                                              {"e", 100},      {"last", 3000}};
  for (const auto& [name, elements] : tensors) state.parameter(name, {static_cast<std::int64_t>(elements)});
  PlainAllocator allocator;
  state.freeze(allocator);
  CheckpointImage image(state.entries());
  for (float& value : state.parameters()) value = 3.25F;
  CHECK(image.snapshot() == nullptr);
  std::vector<std::byte> bytes(image.bytes().begin(), image.bytes().end());
  const auto trailer = build_trailer(bytes, {0, 1, 0}, image.index());
  bytes.insert(bytes.end(), trailer.begin(), trailer.end());
  write_plain(directory, kName, bytes);
  const auto error_with_damage_at = [&](std::size_t offset) {
    directory.content(kName)[offset] ^= std::byte{1};
    const std::string error = error_of([&] { CheckpointFile(directory, kName); });
    directory.content(kName)[offset] ^= std::byte{1};
    return error;
  };
  // 3.25 stands nowhere but in the values.
  const float value = 3.25F;
  std::vector<std::byte> pattern(512);
  for (std::size_t i = 0; i < pattern.size(); i += 4) std::memcpy(&pattern[i], &value, 4);
  const auto first = std::search(bytes.begin(), bytes.end(), pattern.begin(), pattern.end()) - bytes.begin();
  const auto inside_first = static_cast<std::size_t>(first) + 10'000;
  CHECK(error_with_damage_at(inside_first).find("(in '/model/first')") != std::string::npos);
  CHECK(error_with_damage_at(inside_first).find("offset " + std::to_string(inside_first / 4096 * 4096)) !=
        std::string::npos);
  CHECK(error_with_damage_at(image.bytes().size() + 2).find("table of checksums") != std::string::npos);
  CHECK(error_with_damage_at(bytes.size() - 200).find("table of checksums, or what follows") !=
        std::string::npos);
  CHECK(error_with_damage_at(bytes.size() - 30).find("digest of the file") != std::string::npos);
  CHECK(error_with_damage_at(bytes.size() - 10).find("should be zero") != std::string::npos);
  bool several = false;
  for (std::size_t offset = 0; offset < image.bytes().size(); offset += 4096) {
    const std::string error = error_with_damage_at(offset);
    several = several || error.find(" more)") != std::string::npos;
  }
  CHECK(several);
  // An index that cannot be understood is no reason to read outside of it, or to guess.
  for (const std::size_t length : {std::size_t{1}, std::size_t{17}, std::size_t{18}, std::size_t{30}}) {
    std::vector<std::byte> broken(image.bytes().begin(), image.bytes().end());
    const std::vector<std::byte> index(length, std::byte{0xff});
    const auto odd = build_trailer(broken, {0, 1, 0}, index);
    broken.insert(broken.end(), odd.begin(), odd.end());
    directory.content(kName) = broken;
    CHECK(error_of([&] { CheckpointFile(directory, kName); }).find("record 0 of its index") !=
          std::string::npos);
    CHECK(error_with_damage_at(inside_first).find("offset") != std::string::npos);
  }
}

TEST_CASE("an index is what was written or refused, whatever is in it, and agrees with the HDF5 structure") {
  SmallModel model;
  model.set(42);
  CheckpointImage image(model.state.entries());
  CHECK(image.snapshot() == nullptr);
  MemoryDirectory directory;
  const auto write = [&](std::span<const std::byte> index) {
    std::vector<std::byte> bytes(image.bytes().begin(), image.bytes().end());
    const auto trailer = build_trailer(bytes, {42, 1, 0}, index);
    bytes.insert(bytes.end(), trailer.begin(), trailer.end());
    if (directory.exists(kName)) directory.remove(kName);
    write_plain(directory, kName, bytes);
  };
  const auto size = std::uint64_t{image.bytes().size()};
  auto extents = parse_index(image.index(), size, kName);
  CHECK(extents.size() == model.state.entries().size());
  CHECK(parse_index(build_index(extents), size, kName) == extents);
  write(image.index());
  const CheckpointFile good(directory, kName);
  CHECK_NOTHROW(good.check_structure());
  CHECK(good.digest() == model.digest());
  write({});
  const CheckpointFile without(directory, kName);  // by its HDF5 structure
  CHECK(without.digest() == model.digest());
  CHECK_NOTHROW(without.check_structure());

  // Every byte of it changed in every bit, in a file that is signed all the same: nothing is read outside of
  // the image (a sanitizer would tell), and what differs from the structure is found.
  std::size_t refused = 0;
  std::size_t contradicting = 0;
  std::vector<std::byte> index(image.index().begin(), image.index().end());
  for (std::size_t at = 0; at < index.size(); ++at) {
    const std::byte before = index[at];
    for (int bit = 0; bit < 8; ++bit) {
      index[at] = before ^ std::byte(1 << bit);
      write(index);
      try {
        const CheckpointFile file(directory, kName);
        static_cast<void>(file.digest());
        file.check_structure();
        FAIL_CHECK("byte " << at << " of the index changed, and nobody minds");
      } catch (const DataError& error) {
        ++(std::string(error.what()).find("contradicts itself") != std::string::npos ? contradicting
                                                                                     : refused);
      }
    }
    index[at] = before;
  }
  CHECK(refused > 1000);
  CHECK(contradicting > 1000);
  for (std::size_t length = 1; length < index.size(); ++length) {
    write(std::span(index).first(length));
    CHECK_FALSE(error_of([&] { CheckpointFile(directory, kName).check_structure(); }).empty());
  }
  // One byte past the end of the image, and products that would wrap.
  for (const Extent& outside :
       {Extent{"/a", ElementType::f32, {2}, size - 7}, Extent{"/a", ElementType::u8, {}, size},
        Extent{"/a", ElementType::f64, {std::int64_t{1} << 61}, 0},
        Extent{"/a", ElementType::u8, {1}, size + 1}, Extent{"/a\x1b[2J", ElementType::u8, {1}, 0},
        Extent{"/a", ElementType::i32, {std::int64_t{1} << 31, std::int64_t{1} << 31}, 0}}) {
    CHECK(error_of([&] { parse_index(build_index(std::span(&outside, 1)), size, kName); }).find("record 0") !=
          std::string::npos);
  }
  const Extent last{"/a", ElementType::f32, {2}, size - 8};
  CHECK(parse_index(build_index(std::span(&last, 1)), size, kName).size() == 1);
  extents.push_back(extents.front());
  write(build_index(extents));
  CHECK(error_of([&] { CheckpointFile(directory, kName); }).find("twice") != std::string::npos);
  for (const char* path : {"model", "/model//x", "/model/../x", "/", "/x/", "/./x"}) {
    extents.back().path = path;
    write(build_index(extents));
    CHECK(error_of([&] { CheckpointFile(directory, kName); }).find("a path that is none") !=
          std::string::npos);
  }
}

TEST_CASE("a file that was signed is read with its key or without one, and by no other key") {
  MemoryDirectory directory;
  SmallModel model;
  const auto key_of = [](char letter) { return MacKey(std::vector<std::byte>(32, std::byte(letter))); };
  const MacKey key = key_of('k');
  const MacKey other = key_of('o');
  auto bytes = image_at(model, 42);
  const auto image = bytes;
  const auto trailer = build_trailer(bytes, {42, 1, 1.7e9}, {}, &key);
  bytes.insert(bytes.end(), trailer.begin(), trailer.end());
  write_plain(directory, kName, bytes);
  CHECK(CheckpointFile(directory, kName).trailer().is_signed);
  CHECK_NOTHROW(CheckpointFile(directory, kName, &key));
  CHECK(error_of([&] { CheckpointFile(directory, kName, &other); }).find("another key") != std::string::npos);
  // Somebody without the key changes a value and makes everything fit that can be made to fit.
  auto forged = image;
  forged.back() ^= std::byte{1};
  auto forged_trailer = build_trailer(forged, {42, 1, 1.7e9}, {}, &other);
  forged.insert(forged.end(), forged_trailer.begin(), forged_trailer.end());
  directory.content(kName) = forged;
  CHECK_NOTHROW(verify_file(*directory.open(kName), kName));
  CHECK_FALSE(error_of([&] { verify_file(*directory.open(kName), kName, &key); }).empty());
  write_signed(directory, "unsigned.h5", image);
  CHECK(error_of([&] { CheckpointFile(directory, "unsigned.h5", &key); }).find("is not signed") !=
        std::string::npos);
}

TEST_CASE("the metric of a checkpoint is kept with its name") {
  MemoryDirectory directory;
  const std::vector<std::byte> image(100, std::byte{7});
  for (const Metric& metric :
       {Metric{"loss", -0.125}, Metric{std::string(Metric::kMaxName, 'm'), 1e300}, Metric{}}) {
    auto bytes = image;
    const auto trailer = build_trailer(image, {3, 1, 0, metric});
    bytes.insert(bytes.end(), trailer.begin(), trailer.end());
    if (directory.exists(kName)) directory.remove(kName);
    write_plain(directory, kName, bytes);
    const Metric read = read_trailer(*directory.open(kName), kName).metric;
    CHECK(read.name == metric.name);
    CHECK(read.known() == metric.known());
    if (metric.known()) CHECK(read.value == metric.value);
  }
}

TEST_CASE("a trailer built in pieces is the one built at once") {
  std::vector<std::byte> image(5'000'003);
  for (std::size_t i = 0; i < image.size(); ++i) image[i] = std::byte(i * 31 % 251);
  TrailerWriter writer;
  std::size_t piece = 1;
  for (std::size_t at = 0; at < image.size(); piece = piece * 3 + 1) {
    const std::size_t count = std::min(piece, image.size() - at);
    writer.add(std::span(image).subspan(at, count));
    at += count;
  }
  CHECK(writer.finish({5, 6, 7.125, {"loss", 0.5}}) == build_trailer(image, {5, 6, 7.125, {"loss", 0.5}}));
  MemoryDirectory directory;
  write_signed(directory, kName, image, 5);
  const Trailer trailer = read_trailer(*directory.open(kName), kName);
  CHECK(trailer.step == 5);
  CHECK(trailer.token == 1);
  CHECK(trailer.saved_at == 1.7e9);
  CHECK(trailer.image_bytes == image.size());
  CHECK(trailer.file_bytes == directory.content(kName).size());
}

TEST_CASE("trailers of arbitrary bytes with a valid mark never read outside the file") {
  SmallModel model;
  auto bytes = image_at(model, 1);
  const auto trailer = build_trailer(bytes, {1, 1, 0});
  bytes.insert(bytes.end(), trailer.begin(), trailer.end());
  constexpr std::size_t kFooter = 160;
  MemoryDirectory directory;
  write_plain(directory, kName, bytes);
  std::uint64_t random = 88172645463325252ULL;
  for (int round = 0; round < 20000; ++round) {
    auto changed = bytes;
    for (int i = 0; i < 8; ++i) {
      random ^= random << 13;
      random ^= random >> 7;
      random ^= random << 17;
      changed[changed.size() - kFooter + random % (kFooter - 12)] = std::byte((random >> 32) & 0xff);
    }
    if (changed == bytes) continue;
    directory.content(kName) = std::move(changed);
    CHECK_FALSE(error_of([&] { CheckpointFile(directory, kName); }).empty());
  }
}

// TF: Saver.testReshape, Saver.variable_name_map
TEST_CASE("another model is refused with all that is missing, extra and different") {
  MemoryDirectory directory;
  write_small(directory);
  const CheckpointFile file(directory, kName);
  State other;
  other.parameter("dense/weight", {4, 5});
  other.parameter("second/weight", {2});
  other.setting("seed", "8");
  PlainAllocator allocator;
  other.freeze(allocator);
  const Digest before = content_digest(other.entries());
  try {
    restore_into(file, other.entries());
    FAIL("restored");
  } catch (const EnvironmentError& error) {
    const std::string text = error.what();
    CHECK(text.find("different '/model/dense/weight': f32 [4, 3] (the model expects f32 [4, 5])") !=
          std::string::npos);
    CHECK(text.find("missing '/model/second/weight'") != std::string::npos);
    CHECK(text.find("extra '/model/dense/bias'") != std::string::npos);
    CHECK(text.find("extra '/slots/velocity/dense/bias'") != std::string::npos);
    CHECK(text.find("setting 'seed' was '7' (this run: '8')") != std::string::npos);
    CHECK(text.find("setting 'model' was 'small' (this run: not set)") != std::string::npos);
  }
  CHECK(content_digest(other.entries()) == before);
}

TEST_CASE("another setting is refused unless its change is allowed by name") {
  MemoryDirectory directory;
  write_small(directory);
  const CheckpointFile file(directory, kName);
  SmallModel other(3, "a much longer seed");
  CHECK_THROWS_AS(restore_into(file, other.state.entries()), EnvironmentError);
  CHECK_THROWS_AS(restore_into(file, other.state.entries(), {"model"}), EnvironmentError);
  CHECK(restore_into(file, other.state.entries(), {"seed"}).size() == 1);
  CHECK(other.state.global_step() == 42);
  CHECK(other.state.settings().at("seed") == "a much longer seed");
}

TEST_CASE("what hooks keep is restored where both have it, and may be missing, extra or of another size") {
  struct Kept {
    explicit Kept(std::vector<std::pair<std::string, std::size_t>> names) {
      state.parameter("w", {1});
      for (const auto& [name, count] : names) {
        values.push_back(state.keep(name, count));
        std::ranges::fill(values.back(), 1.0);
      }
      PlainAllocator allocator;
      state.freeze(allocator);
    }
    State state;
    std::vector<std::span<double>> values;
  };
  MemoryDirectory directory;
  Kept writer({{"both", 2}, {"extra", 1}, {"size", 1}});
  writer.state.set_global_step(42);
  writer.values[0][1] = 7;
  CheckpointImage image(writer.state.entries());
  image.snapshot();
  write_signed(directory, kName, {image.bytes().begin(), image.bytes().end()});
  Kept reader({{"both", 2}, {"missing", 3}, {"size", 4}});
  const auto told = restore_into(CheckpointFile(directory, kName), reader.state.entries());
  CHECK(told == std::vector<std::string>{
                    "'/session/hooks/extra' is of a hook or a node that this run does not have",
                    "'/session/hooks/missing' is not in the checkpoint",
                    "'/session/hooks/size' is f64 [1] in the checkpoint",
                });
  CHECK(reader.values[0][1] == 7);
  CHECK(reader.values[1][2] == 1);
  CHECK(reader.values[2][3] == 1);
  CHECK(reader.state.global_step() == 42);
}

/// KiB that this process has had at most.
long largest_memory() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

/// An HDF5 image made with the library's own means.
std::vector<std::byte> hostile_image(const std::function<void(hid_t file)>& fill) {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_fapl_core(access, 65536, 0);
  H5Pset_libver_bounds(access, H5F_LIBVER_EARLIEST, H5F_LIBVER_LATEST);
  const hid_t file = H5Fcreate("hostile", H5F_ACC_TRUNC, H5P_DEFAULT, access);
  fill(file);
  H5Fflush(file, H5F_SCOPE_GLOBAL);
  std::vector<std::byte> image(static_cast<std::size_t>(H5Fget_file_image(file, nullptr, 0)));
  H5Fget_file_image(file, image.data(), image.size());
  H5Fclose(file);
  H5Pclose(access);
  return image;
}

void make_dataset(hid_t file, const char* name, hid_t type, const std::vector<hsize_t>& shape,
                  const std::function<void(hid_t properties)>& adjust = {}) {
  const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  if (adjust) adjust(properties);
  const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
  const hid_t dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  CHECK(dataset >= 0);
  H5Dclose(dataset);
  H5Sclose(space);
  H5Pclose(properties);
}

TEST_CASE("well signed files with anything but plain tensors inside are refused") {
  const auto early = [](hid_t properties) { H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY); };
  // Where a link leads that leaves the file: to a tensor that would be taken.
  const auto elsewhere = std::filesystem::temp_directory_path() /
                         ("lockstep-format-" + std::to_string(SystemIdentity().nonce()) + ".h5");
  {
    const hid_t file = H5Fcreate(elsewhere.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    REQUIRE(file >= 0);
    make_dataset(file, "x", H5T_IEEE_F32LE, {4}, early);
    H5Fclose(file);
  }
  const std::vector<std::pair<const char*, std::function<void(hid_t)>>> hostile = {
      {"external link",
       [](hid_t file) { H5Lcreate_external("/etc/passwd", "/", file, "x", H5P_DEFAULT, H5P_DEFAULT); }},
      {"external link to a tensor",
       [&](hid_t file) { H5Lcreate_external(elsewhere.c_str(), "/x", file, "x", H5P_DEFAULT, H5P_DEFAULT); }},
      {"soft link", [](hid_t file) { H5Lcreate_soft("/", file, "x", H5P_DEFAULT, H5P_DEFAULT); }},
      {"soft link to a tensor",
       [&](hid_t file) {
         make_dataset(file, "a", H5T_IEEE_F32LE, {4}, early);
         H5Lcreate_soft("/a", file, "x", H5P_DEFAULT, H5P_DEFAULT);
       }},
      {"second name",
       [&](hid_t file) {
         make_dataset(file, "a", H5T_IEEE_F32LE, {4}, early);
         H5Lcreate_hard(file, "a", file, "b", H5P_DEFAULT, H5P_DEFAULT);
       }},
      {"folder that holds itself",
       [](hid_t file) {
         const hid_t group = H5Gcreate2(file, "g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
         H5Lcreate_hard(group, ".", group, "g", H5P_DEFAULT, H5P_DEFAULT);
         H5Gclose(group);
       }},
      {"root inside a folder",
       [](hid_t file) {
         const hid_t group = H5Gcreate2(file, "g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
         H5Lcreate_hard(file, "/", group, "g", H5P_DEFAULT, H5P_DEFAULT);
         H5Gclose(group);
       }},
      {"external storage",
       [](hid_t file) {
         make_dataset(file, "x", H5T_STD_U8LE, {16},
                      [](hid_t properties) { H5Pset_external(properties, "/etc/passwd", 0, 16); });
       }},
      {"4 TiB", [](hid_t file) { make_dataset(file, "x", H5T_IEEE_F32LE, {hsize_t{1} << 40}); }},
      {"product that wraps",
       [](hid_t file) {
         make_dataset(file, "x", H5T_IEEE_F32LE, {hsize_t{1} << 20, hsize_t{1} << 20, 1 << 20});
       }},
      {"no values", [](hid_t file) { make_dataset(file, "x", H5T_IEEE_F32LE, {4}); }},
      {"chunks",
       [](hid_t file) {
         make_dataset(file, "x", H5T_IEEE_F32LE, {16}, [](hid_t properties) {
           const hsize_t chunk = 4;
           H5Pset_chunk(properties, 1, &chunk);
         });
       }},
      {"filter",
       [](hid_t file) {
         make_dataset(file, "x", H5T_IEEE_F32LE, {16}, [](hid_t properties) {
           const hsize_t chunk = 4;
           H5Pset_chunk(properties, 1, &chunk);
           H5Pset_fletcher32(properties);
         });
       }},
      {"compact",
       [](hid_t file) {
         make_dataset(file, "x", H5T_IEEE_F32LE, {4},
                      [](hid_t properties) { H5Pset_layout(properties, H5D_COMPACT); });
       }},
      {"big-endian", [&](hid_t file) { make_dataset(file, "x", H5T_IEEE_F32BE, {4}, early); }},
      {"reference", [&](hid_t file) { make_dataset(file, "x", H5T_STD_REF_OBJ, {4}, early); }},
      {"text of any length",
       [&](hid_t file) {
         const hid_t type = H5Tcopy(H5T_C_S1);
         H5Tset_size(type, H5T_VARIABLE);
         make_dataset(file, "x", type, {1}, early);
         H5Tclose(type);
       }},
      {"named type",
       [](hid_t file) {
         const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
         H5Tcommit2(file, "x", type, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
         H5Tclose(type);
       }},
      {"attribute",
       [](hid_t file) {
         const hid_t group = H5Gcreate2(file, "g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
         const hid_t space = H5Screate(H5S_SCALAR);
         H5Aclose(H5Acreate2(group, "a", H5T_IEEE_F32LE, space, H5P_DEFAULT, H5P_DEFAULT));
         H5Sclose(space);
         H5Gclose(group);
       }},
      {"large attribute",
       [](hid_t file) {
         const hsize_t elements = 16000;  // 64,000 bytes: about as much as the old format takes
         const hid_t space = H5Screate_simple(1, &elements, nullptr);
         const hid_t attribute = H5Acreate2(file, "a", H5T_IEEE_F32LE, space, H5P_DEFAULT, H5P_DEFAULT);
         CHECK(attribute >= 0);
         H5Aclose(attribute);
         H5Sclose(space);
         make_dataset(file, "x", H5T_IEEE_F32LE, {4});
       }},
      {"virtual layout",
       [](hid_t file) {
         make_dataset(file, "x", H5T_IEEE_F32LE, {16}, [](hid_t properties) {
           const hsize_t elements = 16;
           const hid_t space = H5Screate_simple(1, &elements, nullptr);
           CHECK(H5Pset_virtual(properties, space, "/etc/passwd", "y", space) >= 0);
           H5Sclose(space);
         });
       }},
      {"name that moves the cursor",
       [](hid_t file) { H5Gclose(H5Gcreate2(file, "\x1b[2J", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)); }},
      {"folders in folders",
       [](hid_t file) {
         std::string path;
         for (int depth = 0; depth < 300; ++depth) {
           path += "/g";
           H5Gclose(H5Gcreate2(file, path.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
         }
       }},
      {"soft links in a ring",
       [](hid_t file) {
         H5Lcreate_soft("/b", file, "a", H5P_DEFAULT, H5P_DEFAULT);
         H5Lcreate_soft("/a", file, "b", H5P_DEFAULT, H5P_DEFAULT);
       }},
      {"folders that hold each other",
       [](hid_t file) {
         H5Gclose(H5Gcreate2(file, "a", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
         H5Gclose(H5Gcreate2(file, "a/b", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
         H5Lcreate_hard(file, "a", file, "a/b/a", H5P_DEFAULT, H5P_DEFAULT);
       }},
  };
  const long before = largest_memory();
  for (const auto& [name, fill] : hostile) {
    const std::string what = name;  // clang 14 does not capture the name of a binding
    CAPTURE(what);
    MemoryDirectory directory;
    write_signed(directory, kName, hostile_image(fill));
    const std::string error = error_of([&] { CheckpointFile(directory, kName); });
    CHECK(error.find("is not a checkpoint that is read here") != std::string::npos);
  }
  std::filesystem::remove(elsewhere);
  CHECK(largest_memory() - before <= 64 * 1024);
  MemoryDirectory directory;
  write_signed(directory, kName,
               hostile_image([&](hid_t file) { make_dataset(file, "x", H5T_IEEE_F32LE, {4}, early); }));
  CHECK_NOTHROW(CheckpointFile(directory, kName));
}

TEST_CASE("a well signed image of garbage is refused without a word from HDF5") {
  MemoryDirectory directory;
  write_signed(directory, kName, std::vector<std::byte>(5000, std::byte{0x55}));
  CHECK_FALSE(error_of([&] { CheckpointFile(directory, kName); }).empty());
}

TEST_CASE("a file whose trailer and content disagree on the step is refused") {
  MemoryDirectory directory;
  SmallModel model;
  write_signed(directory, kName, image_at(model, 41));
  CHECK(error_of([&] { CheckpointFile(directory, kName); }).find("step 41") != std::string::npos);
}

TEST_CASE("h5py opens a checkpoint as it is and lists its tensors by name") {
  if (std::system("/usr/bin/python3 -c 'import h5py' >/dev/null 2>&1") != 0) {
    MESSAGE("skipped: python3-h5py is not installed");
    return;
  }
  const auto folder = std::filesystem::temp_directory_path() /
                      ("lockstep-format-" + std::to_string(SystemIdentity().nonce()));
  const auto directory = PosixFileSystem().create_directory(folder);
  write_small(*directory);
  const std::string script =
      "import h5py,sys\n"
      "f=h5py.File(sys.argv[1],'r')\n"
      "assert f['/model/dense/weight'].shape==(4,3)\n"
      "assert f['/model/dense/weight'][0,1]==43.5, f['/model/dense/weight'][0,1]\n"
      "assert f['/slots/velocity/dense/bias'][2]==44.25\n"
      "assert f['/session/global_step'][()]==42\n"
      "assert f['/config/model'][()]==b'small'\n"
      "assert f['/model/user/doubles'][4]==14.0\n";
  const std::string command = "/usr/bin/python3 -c \"" + script + "\" " + (folder / kName).string();
  CHECK(std::system(command.c_str()) == 0);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace lockstep
