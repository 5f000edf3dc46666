#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/base/process.hpp>

using namespace lockstep;

namespace {

std::vector<std::byte> bytes_of(const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

std::string hex(const Mac::Code& code) {
  std::string text;
  for (const std::uint8_t byte : code) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

TEST_CASE("codes are those of RFC 4231, however the bytes are cut") {
  const std::vector<std::tuple<std::string, std::string, std::string>> known = {
      {std::string(20, '\x0b'), "Hi There",
       "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
      {std::string(20, '\xaa'), std::string(50, '\xdd'),
       "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
      {std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First",
       "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"}};
  for (const auto& [secret, message, expected] : known) {
    const MacKey key(bytes_of(secret));
    for (std::size_t cut = 0; cut <= message.size(); ++cut) {
      Mac mac(key);
      mac.update(bytes_of(message.substr(0, cut)));
      mac.update(bytes_of(message.substr(cut)));
      CHECK(hex(mac.finish()) == expected);
    }
  }
}

TEST_CASE("codes are equal when every byte is") {
  Mac::Code left{};
  Mac::Code right{};
  CHECK(Mac::equal(left, right));
  for (std::size_t i = 0; i < left.size(); ++i) {
    right[i] ^= 1;
    CHECK_FALSE(Mac::equal(left, right));
    right[i] ^= 1;
  }
}

TEST_CASE("a key is a file that its owner alone can read, of a size that can be a secret") {
  const auto folder =
      std::filesystem::temp_directory_path() / ("lockstep-mac-" + std::to_string(SystemIdentity().nonce()));
  PosixFileSystem files;
  const auto directory = files.create_directory(folder);
  const auto write = [&](const std::string& name, std::size_t size, mode_t mode) {
    directory->create(name)->write(std::vector<std::byte>(size, std::byte{7}));
    REQUIRE(::chmod((folder / name).c_str(), mode) == 0);
  };
  write("good", 32, 0600);
  write("readable", 32, 0640);
  write("public", 32, 0604);
  write("short", 15, 0600);
  write("long", (1 << 16) + 1, 0600);
  CHECK(MacKey::load(files, folder / "good").secret().size() == 32);
  CHECK_THROWS_AS(MacKey::load(files, folder / "readable"), EnvironmentError);
  CHECK_THROWS_AS(MacKey::load(files, folder / "public"), EnvironmentError);
  CHECK_THROWS_AS(MacKey::load(files, folder / "short"), UsageError);
  CHECK_THROWS_AS(MacKey::load(files, folder / "long"), UsageError);
  CHECK_THROWS_AS(MacKey::load(files, folder / "none"), FileError);
  std::filesystem::remove_all(folder);
}

}  // namespace
