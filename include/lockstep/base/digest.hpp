#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace lockstep {

/// XXH3-128 of some bytes, in its canonical (big-endian) byte order.
struct Digest {
  std::array<std::uint8_t, 16> bytes{};

  /// 32 lower-case hexadecimal digits.
  std::string hex() const;
  friend bool operator==(const Digest&, const Digest&) = default;
};

/// Streams bytes into a Digest. The result does not depend on how the bytes were cut into updates.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;

  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  Digest digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

Digest digest_of(std::span<const std::byte> bytes);

/// CRC32C (Castagnoli), as in iSCSI and TensorFlow's record files. `crc` continues an earlier result.
/// Uses the CPU's instruction where it has one.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t crc = 0) noexcept;

/// `crcs[i]` becomes the crc32c of block i: `block_bytes` of `bytes`, the last one may have fewer. Several
/// blocks at a time, which is a few times faster than one after the other. Throws InternalError when `crcs`
/// does not have one for each block.
void crc32c_blocks(std::span<const std::byte> bytes, std::size_t block_bytes, std::span<std::uint32_t> crcs);

}  // namespace lockstep
