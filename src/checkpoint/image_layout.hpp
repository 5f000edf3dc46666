#pragma once

#include <cstddef>
#include <vector>

#include <lockstep/base/page_buffer.hpp>
#include <lockstep/state/entry.hpp>

namespace lockstep {

/// An HDF5 file in memory with a place for each entry.
struct ImageLayout {
  std::vector<std::size_t> offsets;  ///< of each entry in `bytes`
  PageBuffer bytes;
};

/// Makes one; no value is in its place yet. Depends on paths, types and shapes alone. Throws UsageError when
/// the entries do not fit into one file. Local.
ImageLayout lay_out(const std::vector<Entry>& entries);

}  // namespace lockstep
