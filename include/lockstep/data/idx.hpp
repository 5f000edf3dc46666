#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include <lockstep/base/files.hpp>

namespace lockstep {

/// A file of the IDX format (as MNIST comes) with unsigned bytes, plain or compressed with gzip; which of the
/// two is seen from its first bytes. Opening it reads the header; the elements are read later, into storage
/// that the caller provides (memory of this process, or shared by the ranks of a node).
///
/// Local; one thread at a time. A missing file and damaged content throw DataError, other failures to open or
/// read FileError.
class IdxFile {
 public:
  IdxFile(FileSystem& files, const std::filesystem::path& path);

  const std::filesystem::path& path() const noexcept { return path_; }
  const std::vector<std::int64_t>& shape() const noexcept { return shape_; }
  std::uint64_t elements() const noexcept { return elements_; }

  /// Header and elements without compression: the size of the storage that `read` needs. Bounded by what a
  /// file of this length can hold, so that a damaged header cannot ask for more memory than that.
  std::uint64_t stored_bytes() const noexcept { return header_bytes() + elements_; }

  /// Reads (and inflates, and checks against gzip's checksum) the whole file into `storage` of
  /// stored_bytes().
  void read(std::span<std::uint8_t> storage) const;

  /// The elements within such a storage: all but the header at its start.
  std::span<const std::uint8_t> values(std::span<const std::uint8_t> storage) const noexcept {
    return storage.subspan(header_bytes());
  }

 private:
  std::size_t header_bytes() const noexcept { return 4 + 4 * shape_.size(); }

  std::filesystem::path path_;
  std::unique_ptr<ReadableFile> file_;
  bool compressed_ = false;
  std::vector<std::int64_t> shape_;
  std::uint64_t elements_ = 0;
};

/// A whole IDX file in memory of its own.
struct IdxArray {
  std::vector<std::int64_t> shape;
  std::span<const std::uint8_t> values;  ///< row-major
  std::shared_ptr<const std::uint8_t[]> storage;
};

/// Opens and reads `path`. Local. Throws as IdxFile does.
IdxArray read_idx(FileSystem& files, const std::filesystem::path& path);

}  // namespace lockstep
