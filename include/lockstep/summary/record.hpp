#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lockstep {

/// The checksum of TensorFlow's record files: CRC32C, rotated and offset so that a checksum over data that
/// holds checksums itself stays useful.
std::uint32_t masked_crc32c(std::string_view data) noexcept;

/// Appends `data` to `out` as one record: length (8 bytes, little-endian), masked checksum of these eight
/// bytes, data, masked checksum of the data.
void append_record(std::string& out, std::string_view data);

}  // namespace lockstep
