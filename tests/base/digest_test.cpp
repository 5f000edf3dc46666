#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/error.hpp>

using namespace lockstep;

namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

std::string counting(std::size_t length) {
  std::string text;
  for (std::size_t i = 0; i < length; ++i) text += static_cast<char>(i & 0xff);
  return text;
}

}  // namespace

TEST_CASE("digests are XXH3-128 in canonical order") {
  // From the reference implementation through another language's binding.
  CHECK(digest_of(bytes_of("")).hex() == "99aa06d3014798d86001c324468d497f");
  CHECK(digest_of(bytes_of("a")).hex() == "a96faf705af16834e6c632b61e964e1f");
  CHECK(digest_of(bytes_of("abc")).hex() == "06b05ab6733a618578af5f94892f3950");
  CHECK(digest_of(bytes_of(counting(1280))).hex() == "d92ab3a1cb0542a74844b009e164352e");
}

TEST_CASE("a digest does not depend on how the bytes were cut into updates") {
  const std::string text = counting(3000);
  const Digest whole = digest_of(bytes_of(text));
  for (const std::size_t piece : {1, 7, 64, 240, 1000, 2999}) {
    Hasher hasher;
    for (std::size_t i = 0; i < text.size(); i += piece)
      hasher.update(std::string_view(text).substr(i, piece));
    CHECK(hasher.digest() == whole);
  }
}

TEST_CASE("a hasher can be moved, and asked in between") {
  Hasher first;
  first.update("ab");
  CHECK(first.digest() == digest_of(bytes_of("ab")));
  Hasher second = std::move(first);
  second.update("c");
  CHECK(second.digest() == digest_of(bytes_of("abc")));
}

TEST_CASE("crc32c gives the known answers") {
  CHECK(crc32c(bytes_of("123456789")) == 0xe3069283);
  CHECK(crc32c({}) == 0);
  // RFC 3720, B.4.
  CHECK(crc32c(bytes_of(std::string(32, '\0'))) == 0x8a9136aa);
  CHECK(crc32c(bytes_of(std::string(32, '\xff'))) == 0x62a8ab43);
  CHECK(crc32c(bytes_of(counting(32))) == 0x46dd794e);
}

TEST_CASE("crc32c can be continued at any place, from any alignment") {
  const std::string text = counting(100);
  const std::uint32_t whole = crc32c(bytes_of(text));
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    const auto all = bytes_of(text);
    CHECK(crc32c(all.subspan(cut), crc32c(all.first(cut))) == whole);
  }
}

TEST_CASE("checksums of blocks are those of each block alone, whatever their size and number") {
  const std::string text = counting(997);
  const auto all = bytes_of(text);
  for (const std::size_t block : {1, 7, 8, 64, 100, 996, 997, 998}) {
    CAPTURE(block);
    std::vector<std::uint32_t> crcs((all.size() + block - 1) / block);
    crc32c_blocks(all, block, crcs);
    for (std::size_t i = 0; i < crcs.size(); ++i) {
      CHECK(crcs[i] == crc32c(all.subspan(i * block, std::min(block, all.size() - i * block))));
    }
    crcs.push_back(0);
    CHECK_THROWS_AS(crc32c_blocks(all, block, crcs), InternalError);
  }
}
