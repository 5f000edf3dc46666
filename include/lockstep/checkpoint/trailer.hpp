#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/base/page_buffer.hpp>
#include <lockstep/state/entry.hpp>

namespace lockstep {

/// How good a checkpoint is by one of the values of its step.
struct Metric {
  static constexpr std::size_t kMaxName = 31;

  std::string name;  ///< empty: none
  double value = std::numeric_limits<double>::quiet_NaN();

  bool known() const noexcept { return !name.empty(); }

  friend bool operator==(const Metric& left, const Metric& right) {
    return left.name == right.name && (!left.known() || left.value == right.value);
  }
};

/// What a checkpoint says of itself beside its content.
struct Stamp {
  std::int64_t step = 0;
  std::uint64_t token = 0;  ///< fencing token of the job that wrote it; 0: written without a lock
  double saved_at = 0;      ///< seconds since 1970, to the millisecond; for people and for retention
  Metric metric = {};
};

/// What stands behind the HDF5 image in a checkpoint and makes the file prove itself. The bytes are described
/// in docs/checkpoint_format.md.
struct Trailer : Stamp {
  std::uint64_t image_bytes = 0;  ///< of the HDF5 image, which starts the file
  std::uint64_t file_bytes = 0;   ///< image and trailer
  Digest digest;                  ///< XXH3-128 of everything before it
  bool is_signed = false;         ///< with a key; see MacKey
};

/// Where in an image the values of an entry lie, and what they are.
struct Extent {
  std::string path;
  ElementType type = ElementType::f32;
  Shape shape = {};
  std::uint64_t offset = 0;

  friend bool operator==(const Extent&, const Extent&) = default;
};

/// The bytes of an index: what an image holds, for those who would not let HDF5 look for it.
std::vector<std::byte> build_index(std::span<const Extent> extents);

/// The inverse, for any bytes at all. Nothing is allocated by what they claim. `name` is for messages. Throws
/// DataError for what `build_index` does not make, for values outside an image of `image_bytes`, and for a
/// path that is given twice.
std::vector<Extent> parse_index(std::span<const std::byte> index, std::uint64_t image_bytes,
                                const std::string& name);

/// Builds a trailer while the image passes by. Not thread-safe.
class TrailerWriter {
 public:
  /// `index` is what `build_index` gave, or nothing; `key` signs the file. Both must outlive this.
  explicit TrailerWriter(std::span<const std::byte> index = {}, const MacKey* key = nullptr);

  /// The next bytes of the image, cut anyhow.
  void add(std::span<const std::byte> bytes);

  /// What is to follow the image. Call once, after the last byte.
  std::vector<std::byte> finish(const Stamp& stamp);

  const Digest& digest() const noexcept { return digest_; }  ///< valid after `finish`

 private:
  std::span<const std::byte> index_;
  Hasher hasher_;
  std::optional<Mac> mac_;
  std::vector<std::uint32_t> checksums_;
  std::uint64_t image_bytes_ = 0;
  Digest digest_;
};

std::vector<std::byte> build_trailer(std::span<const std::byte> image, const Stamp& stamp,
                                     std::span<const std::byte> index = {}, const MacKey* key = nullptr);

/// Reads the trailer alone and checks that it is whole and fits the size of the file; the image is not read,
/// and no signature is checked. `name` is for messages. Throws DataError that says what is wrong at which
/// offset, and FileError.
Trailer read_trailer(ReadableFile& file, const std::string& name);

/// The index alone, as `read_trailer`: of the image nothing is known by it.
std::vector<std::byte> read_index(ReadableFile& file, const std::string& name);

/// Reads everything and checks every byte against the trailer, in pieces; with `key` also that the file was
/// signed with it. Throws as `read_trailer`; a message about the image names the tensors that lie there.
Trailer verify_file(ReadableFile& file, const std::string& name, const MacKey* key = nullptr);

/// An image of which every byte was verified, in memory.
struct VerifiedImage {
  Trailer trailer;
  PageBuffer bytes;
  std::vector<std::byte> index;  ///< verified as well, and not yet understood

  std::span<const std::byte> image() const noexcept { return bytes.bytes(); }
};

/// As `verify_file`, and keeps the image. DataError also when the image is larger than `limit` bytes.
VerifiedImage read_verified(ReadableFile& file, const std::string& name, std::uint64_t limit,
                            const MacKey* key = nullptr);

}  // namespace lockstep
