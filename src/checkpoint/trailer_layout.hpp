#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

// The bytes behind an image, for those who write and read them; docs/checkpoint_format.md.

namespace lockstep {

static_assert(std::endian::native == std::endian::little, "fields are copied as they lie in memory");

// A page: damage is found at the granularity in which disks and memory lose things, and a tensor can be
// named.
inline constexpr std::size_t kBlockBytes = 4096;
inline constexpr std::size_t kMaxPathLength = 1024;
inline constexpr std::uint32_t kVersion = 1;
inline constexpr std::array<char, 8> kMagic = {'L', 'K', 'S', 'T', 'P', 'C', 'K', '\n'};
inline constexpr std::size_t kChecksumBytes = sizeof(std::uint32_t);

// Offsets of the footer's fields from its start.
inline constexpr std::size_t kImageBytesAt = 0;
inline constexpr std::size_t kStepAt = 8;
inline constexpr std::size_t kTokenAt = 16;
inline constexpr std::size_t kSavedAtAt = 24;  // milliseconds since 1970
inline constexpr std::size_t kBlockBytesAt = 32;
inline constexpr std::size_t kBlockCountAt = 36;
inline constexpr std::size_t kIndexBytesAt = 40;
inline constexpr std::size_t kMetricAt = 48;
inline constexpr std::size_t kMetricNameAt = 56;  // padded with zeros
inline constexpr std::size_t kSignedAt = 88;      // 1: the code is there
inline constexpr std::size_t kTableCrcAt = 92;    // CRC32C of table, index and the footer up to here
inline constexpr std::size_t kCodeAt = 96;        // HMAC-SHA-256 of everything before it, or zeros
inline constexpr std::size_t kDigestAt = 128;     // of everything before it
inline constexpr std::size_t kVersionAt = 144;
inline constexpr std::size_t kReservedAt = 148;
inline constexpr std::size_t kMagicAt = 152;
inline constexpr std::size_t kFooterBytes = 160;

inline constexpr std::size_t kMaxDimensions = 8;  // of what an index names

inline std::uint64_t blocks_of(std::uint64_t image_bytes) noexcept {
  return image_bytes / kBlockBytes + (image_bytes % kBlockBytes != 0 ? 1 : 0);
}

}  // namespace lockstep
