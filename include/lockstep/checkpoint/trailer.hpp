#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/files.hpp>

namespace lockstep {

/// What stands behind the HDF5 image in a checkpoint and makes the file prove itself. The bytes are described
/// in docs/checkpoint_format.md.
struct Trailer {
  std::uint64_t image_bytes = 0;  ///< of the HDF5 image, which starts the file
  std::uint64_t file_bytes = 0;   ///< image and trailer
  std::int64_t step = 0;
  std::uint64_t token = 0;  ///< fencing token of the job that wrote it; 0: written without a lock
  double saved_at = 0;      ///< seconds since 1970, to the millisecond; for people and for retention
  Digest digest;            ///< XXH3-128 of everything before it
};

/// Builds a trailer while the image passes by. Not thread-safe.
class TrailerWriter {
 public:
  /// The next bytes of the image, cut anyhow.
  void add(std::span<const std::byte> bytes);

  /// What is to follow the image. Call once, after the last byte.
  std::vector<std::byte> finish(std::int64_t step, std::uint64_t token, double saved_at);

  const Digest& digest() const noexcept { return digest_; }  ///< valid after `finish`

 private:
  Hasher hasher_;
  std::vector<std::uint32_t> checksums_;
  std::uint64_t image_bytes_ = 0;
  Digest digest_;
};

std::vector<std::byte> build_trailer(std::span<const std::byte> image, std::int64_t step, std::uint64_t token,
                                     double saved_at);

/// Reads the trailer alone and checks that it is whole and fits the size of the file; the image is not read.
/// `name` is for messages. Throws DataError that says what is wrong at which offset, and FileError.
Trailer read_trailer(ReadableFile& file, const std::string& name);

/// Reads everything and checks every byte against the trailer, in pieces. Throws as `read_trailer`.
Trailer verify_file(ReadableFile& file, const std::string& name);

/// An image of which every byte was verified, in memory.
struct VerifiedImage {
  Trailer trailer;
  std::unique_ptr<std::byte[]> bytes;

  std::span<const std::byte> image() const noexcept {
    return {bytes.get(), static_cast<std::size_t>(trailer.image_bytes)};
  }
};

/// As `verify_file`, and keeps the image. DataError also when the image is larger than `limit` bytes.
VerifiedImage read_verified(ReadableFile& file, const std::string& name, std::uint64_t limit);

}  // namespace lockstep
