#pragma once

#include <string>

#include <lockstep/base/files.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/checkpoint/image.hpp>
#include <lockstep/checkpoint/trailer.hpp>

namespace lockstep {

/// Writes an image and its trailer to a new file and syncs it; with `verify` reads every byte back. Of the
/// trailer that is returned, stamp, digest and the bytes of the file are set. Throws FileError, and DataError
/// when what is read is not what was written.
Trailer write_image_file(Directory& directory, const std::string& name, const CheckpointImage& image,
                         const Stamp& stamp, const MacKey* key, bool verify);

}  // namespace lockstep
