#pragma once

#include <cstdint>

#include <lockstep/base/files.hpp>
#include <lockstep/base/process.hpp>

namespace lockstep {

/// Does everything that a save will do, on a small file that is gone afterwards, and looks for room for two
/// checkpoints of `checkpoint_bytes`, so that a directory that cannot take them is known before step 1 and
/// not after hours. Chief only. Throws IoError with what to do.
void probe_directory(Directory& directory, std::uint64_t checkpoint_bytes, ProcessIdentity& identity);

}  // namespace lockstep
