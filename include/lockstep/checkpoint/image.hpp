#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <lockstep/base/page_buffer.hpp>
#include <lockstep/state/entry.hpp>

namespace lockstep {

/// The HDF5 file of a checkpoint, laid out once in memory. Shapes never change, so that a save is a copy of
/// the bytes of each entry to a place that is known; HDF5 is not called again and never sees a disk.
///
/// Equal entries give equal bytes, whenever and wherever the image is built (with one version of HDF5).
/// Local; not thread-safe.
class CheckpointImage {
 public:
  /// Throws UsageError when the entries do not fit into one file: a name that is also a folder, or no bytes.
  explicit CheckpointImage(std::vector<Entry> entries);

  /// Copies the present values of all entries into the image: the only part of a save that holds up training.
  /// Returns the first entry with a number that is not finite, or null; the image is then of no use.
  const Entry* snapshot() noexcept;

  std::span<const std::byte> bytes() const noexcept { return bytes_.bytes(); }
  const std::vector<Entry>& entries() const noexcept { return entries_; }

  /// What a trailer says of the places of the entries; see `build_index`.
  std::span<const std::byte> index() const noexcept { return index_; }

 private:
  std::vector<Entry> entries_;
  std::vector<std::size_t> offsets_;  // of each entry in the image
  std::vector<std::byte> index_;
  PageBuffer bytes_;
};

}  // namespace lockstep
