#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include <lockstep/base/files.hpp>

namespace lockstep {

/// A secret that shows who wrote a file: whoever does not have it can neither write nor change one unnoticed.
class MacKey {
 public:
  static constexpr std::size_t kLeast = 16;  ///< bytes

  /// Throws UsageError when there are fewer than kLeast bytes.
  explicit MacKey(std::vector<std::byte> secret);

  /// All bytes of a file (`head -c 32 /dev/urandom > key; chmod 600 key`). Throws EnvironmentError when
  /// others may read it, UsageError when it is too short or too long for a key, and FileError.
  static MacKey load(FileSystem& files, const std::filesystem::path& path);

  std::span<const std::byte> secret() const noexcept { return secret_; }

 private:
  std::vector<std::byte> secret_;
};

/// HMAC-SHA-256 (RFC 2104) of some bytes. Not thread-safe.
class Mac {
 public:
  using Code = std::array<std::uint8_t, 32>;

  explicit Mac(const MacKey& key);
  ~Mac();
  Mac(Mac&&) noexcept;
  Mac& operator=(Mac&&) noexcept;

  void update(std::span<const std::byte> bytes);

  /// Call once, after the last byte.
  Code finish();

  /// In a time that does not tell where they differ.
  static bool equal(const Code& left, const Code& right) noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lockstep
