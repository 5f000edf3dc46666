#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/cifar10.hpp>

#include "memory_files.hpp"

namespace lockstep {
namespace {

/// A record whose pixel p of channel c is (label + p + 50 c) mod 256.
void add_record(testing::Bytes& file, std::uint8_t label) {
  file.push_back(label);
  for (int c = 0; c < 3; ++c) {
    for (int p = 0; p < 1024; ++p) file.push_back(static_cast<std::uint8_t>(label + p + 50 * c));
  }
}

testing::MemoryFiles two_records_a_file() {
  testing::MemoryFiles files;
  for (int i = 1; i <= 5; ++i) {
    testing::Bytes file;
    add_record(file, static_cast<std::uint8_t>(i));
    add_record(file, static_cast<std::uint8_t>(i + 4));
    files.files["d/data_batch_" + std::to_string(i) + ".bin"] = file;
  }
  testing::Bytes test;
  add_record(test, 0);
  files.files["d/test_batch.bin"] = test;
  return files;
}

TEST_CASE("records come in the order of the files, channels last, pixels in [0, 1]") {
  testing::MemoryFiles files = two_records_a_file();
  const auto train = load_cifar10(files, "d", Split::train);
  CHECK(train->size() == 10);
  CHECK(train->classes() == 10);
  CHECK(train->sample_shape() == std::vector<std::int64_t>{32, 32, 3});
  const std::vector<std::int64_t> indices{7, 0};
  std::vector<float> inputs(2 * 3072);
  std::vector<std::int32_t> labels(2);
  train->fill(indices, inputs, labels);
  CHECK(labels == std::vector<std::int32_t>{8, 1});
  for (int p = 0; p < 1024; ++p) {
    for (int c = 0; c < 3; ++c) {
      const auto at = static_cast<std::size_t>(3 * p + c);
      if (inputs[at] != static_cast<float>((8 + p + 50 * c) % 256) / 255.0F) FAIL_CHECK("pixel " << at);
      if (inputs[3072 + at] != static_cast<float>((1 + p + 50 * c) % 256) / 255.0F)
        FAIL_CHECK("pixel " << at);
    }
  }
  CHECK(load_cifar10(files, "d", Split::test)->size() == 1);
  CHECK(train->digest().hex() != load_cifar10(files, "d", Split::test)->digest().hex());
  CHECK_THROWS_AS(train->fill(std::vector<std::int64_t>{10, 0}, inputs, labels), InternalError);
}

TEST_CASE("missing and damaged files are refused by name") {
  testing::MemoryFiles files = two_records_a_file();
  files.files.erase("d/data_batch_3.bin");
  CHECK_THROWS_WITH_AS(load_cifar10(files, "d", Split::train), doctest::Contains("data_batch_3.bin"),
                       DataError);
  files = two_records_a_file();
  files.files["d/data_batch_2.bin"].pop_back();
  CHECK_THROWS_WITH_AS(load_cifar10(files, "d", Split::train), doctest::Contains("6145"), DataError);
  files = two_records_a_file();
  files.files["d/data_batch_5.bin"][3073] = 10;
  CHECK_THROWS_WITH_AS(load_cifar10(files, "d", Split::train), doctest::Contains("record 1 has label 10"),
                       DataError);
  files.files["d/test_batch.bin"].clear();
  CHECK_THROWS_AS(load_cifar10(files, "d", Split::test), DataError);
}

}  // namespace
}  // namespace lockstep
