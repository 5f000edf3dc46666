#include <algorithm>
#include <string>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/idx.hpp>

#include "memory_files.hpp"

using namespace lockstep;
using namespace lockstep::testing;

namespace {

IdxArray read_bytes(Bytes bytes) {
  MemoryFiles files;
  files.files["f"] = std::move(bytes);
  return read_idx(files, "f");
}

/// The message of the DataError that reading `bytes` gives; empty if there is none.
std::string error_of(Bytes bytes) {
  try {
    read_bytes(std::move(bytes));
  } catch (const DataError& error) {
    return error.what();
  }
  return {};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Bytes joined(const Bytes& first, const Bytes& second) {
  Bytes bytes = first;
  bytes.insert(bytes.end(), second.begin(), second.end());
  return bytes;
}

}  // namespace

TEST_CASE("a plain file and its compressed forms give the same shape and values") {
  const Bytes values = noise(5 * 4 * 3, 1);
  const Bytes plain = make_idx({5, 4, 3}, values);
  const std::span all(plain);
  const Bytes forms[] = {plain,
                         gzip(plain),
                         gzip(plain, 0),
                         joined(gzip(all.first(3)), gzip(all.subspan(3))),
                         joined(gzip(all.first(0)), joined(gzip(all.first(30)), gzip(all.subspan(30)))),
                         joined(gzip(plain), gzip({}))};
  for (const Bytes& form : forms) {
    const IdxArray array = read_bytes(form);
    CHECK(array.shape == std::vector<std::int64_t>{5, 4, 3});
    CHECK(std::equal(values.begin(), values.end(), array.values.begin(), array.values.end()));
  }
}

TEST_CASE("the header is found however the start of a large file was compressed") {
  // Noise is stored, zeros become long matches that begin inside the header.
  for (const bool zeros : {false, true}) {
    for (const int level : {0, 1, 6, 12}) {
      CAPTURE(zeros);
      CAPTURE(level);
      const Bytes values = zeros ? Bytes(1 << 20, 0) : noise(1 << 20, 2);
      const IdxArray array = read_bytes(gzip(make_idx({1024, 1024}, values), level));
      CHECK(array.shape == std::vector<std::int64_t>{1024, 1024});
      CHECK(std::equal(values.begin(), values.end(), array.values.begin(), array.values.end()));
    }
  }
}

TEST_CASE("a gzip file written by another program is read") {
  // gzip -9 of the 11 bytes 00 00 08 01 00 00 00 03 07 08 09, as Python's zlib writes it.
  const Bytes bytes{0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0xff, 0x63,
                    0x60, 0xe0, 0x60, 0x64, 0x60, 0x60, 0x60, 0x66, 0xe7, 0xe0, 0x04,
                    0x00, 0xad, 0x98, 0x0a, 0xba, 0x0b, 0x00, 0x00, 0x00};
  const IdxArray array = read_bytes(bytes);
  CHECK(array.shape == std::vector<std::int64_t>{3});
  CHECK(array.values[0] == 7);
  CHECK(array.values[2] == 9);
}

TEST_CASE("a file that ends early is a DataError, at whatever length") {
  const Bytes plain = make_idx({6, 5}, noise(30, 3));
  for (const Bytes& whole : {plain, gzip(plain), gzip(plain, 0)}) {
    for (std::size_t length = 0; length < whole.size(); ++length) {
      CAPTURE(length);
      CHECK_FALSE(
          error_of(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length))).empty());
    }
  }
}

TEST_CASE("a large compressed file that ends early is a DataError") {
  const Bytes whole = gzip(make_idx({800, 1000}, noise(800000, 4)));
  for (std::size_t length = 1000; length < whole.size(); length += 49999) {
    CAPTURE(length);
    CHECK_FALSE(error_of(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length))).empty());
  }
}

TEST_CASE("any damaged byte of a compressed file is a DataError or leaves the content as it was") {
  const Bytes values = noise(40, 5);
  const Bytes whole = gzip(make_idx({8, 5}, values));
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (const int mask : {0x01, 0x10, 0x80, 0xff}) {
      CAPTURE(i);
      Bytes damaged = whole;
      damaged[i] ^= static_cast<std::uint8_t>(mask);
      try {
        const IdxArray array = read_bytes(damaged);
        // The time of the compression, say, or bits that fill up the last byte.
        CHECK(std::equal(values.begin(), values.end(), array.values.begin(), array.values.end()));
      } catch (const DataError&) {
      }
    }
  }
}

TEST_CASE("bytes behind the content are a DataError") {
  const Bytes plain = make_idx({2, 2}, {1, 2, 3, 4});
  CHECK(contains(error_of(joined(plain, {0})), "holds 17"));
  CHECK(contains(error_of(joined(gzip(plain), {0})), "1 bytes behind its content"));
  CHECK(contains(error_of(joined(gzip(plain), noise(100, 6))), "100 bytes behind its content"));
  CHECK(contains(error_of(gzip(joined(plain, {0}))), "more than the 16 bytes"));
  CHECK(contains(error_of(joined(gzip(plain), gzip(plain))), "more than the 16 bytes"));
}

TEST_CASE("a wrong magic number is refused by its value") {
  CHECK(contains(error_of({0, 0, 0x0d, 1, 0, 0, 0, 0}), "00000d01"));  // floats
  CHECK(contains(error_of({0, 0, 8, 0, 0, 0, 0, 0}), "00000800"));     // no dimensions
  CHECK(contains(error_of({0, 0, 8, 200, 0, 0, 0, 0}), "000008c8"));
  const Bytes text{'h', 'e', 'l', 'l', 'o', ' ', 'y', 'o', 'u'};
  CHECK(contains(error_of(text), "68656c6c"));
  CHECK(contains(error_of(gzip(text)), "68656c6c"));
}

TEST_CASE("a header that claims more than the file can hold asks for no memory") {
  Bytes huge = make_idx({0xffffffff, 0xffffffff, 0xffffffff}, {1, 2, 3});
  CHECK(contains(error_of(huge), "impossible shape"));
  CHECK(contains(error_of(gzip(huge)), "impossible shape"));
  huge = make_idx({0x7fffffff, 0xffffffff}, {1, 2, 3});
  CHECK(contains(error_of(huge), "holds 15"));
  CHECK(contains(error_of(gzip(huge)), "can inflate to at most"));
}

TEST_CASE("an empty and a missing file are DataErrors that name the file") {
  CHECK(contains(error_of({}), "'f': is empty"));
  MemoryFiles files;
  CHECK_THROWS_WITH_AS(read_idx(files, "there/f"), "data file 'there/f' is missing; check the path",
                       DataError);
}

TEST_CASE("a file of no elements is read") {
  CHECK(read_bytes(make_idx({0, 5}, {})).values.empty());
}
