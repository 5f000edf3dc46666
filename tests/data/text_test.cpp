#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/text.hpp>

#include "memory_files.hpp"

namespace lockstep {
namespace {

TEST_CASE("samples are windows, each byte's label is the next, and the last tenth is the test split") {
  testing::MemoryFiles files;
  testing::Bytes bytes;
  for (int i = 0; i < 100; ++i) bytes.push_back(static_cast<std::uint8_t>(i + 150));
  files.files["t"] = bytes;
  const auto train = load_text(files, "t", 8, Split::train);
  CHECK(train->size() == 11);  // 90 bytes, of which the last is a label alone
  CHECK(train->labels_per_sample() == 8);
  CHECK(train->classes() == 256);
  CHECK(train->sample_shape() == std::vector<std::int64_t>{8});
  std::vector<float> inputs(16);
  std::vector<std::int32_t> labels(16);
  train->fill(std::vector<std::int64_t>{10, 2}, inputs, labels);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(inputs[i] == static_cast<float>(bytes[80 + i]));
    CHECK(labels[i] == bytes[81 + i]);
    CHECK(inputs[8 + i] == static_cast<float>(bytes[16 + i]));
    CHECK(labels[8 + i] == bytes[17 + i]);
  }
  const auto test = load_text(files, "t", 8, Split::test);
  CHECK(test->size() == 1);
  test->fill(std::vector<std::int64_t>{0}, std::span(inputs).first(8), std::span(labels).first(8));
  CHECK(inputs[0] == static_cast<float>(bytes[90]));
  CHECK(train->digest().hex() != test->digest().hex());
}

TEST_CASE("no text, too little of it, and a context that cannot be are refused") {
  testing::MemoryFiles files;
  files.files["t"] = testing::Bytes(100, 65);
  CHECK_THROWS_AS(load_text(files, "elsewhere", 8, Split::train), DataError);
  CHECK_NOTHROW(load_text(files, "t", 89, Split::train));
  CHECK_THROWS_AS(load_text(files, "t", 90, Split::train), DataError);
  CHECK_THROWS_AS(load_text(files, "t", 10, Split::test), DataError);
  CHECK_THROWS_AS(load_text(files, "t", 0, Split::train), UsageError);
}

}  // namespace
}  // namespace lockstep
