#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include <lockstep/base/files.hpp>
#include <lockstep/data/dataset.hpp>
#include <lockstep/data/image_dataset.hpp>

namespace lockstep {

/// Text to be continued, with bytes as tokens: sample i is bytes i * context, ..., (i + 1) * context - 1, and
/// each byte's label is the one that follows it. `path` is a file, or a directory, whose plain files are
/// taken one after the other by name. The last tenth of the bytes is the test split, the rest the training
/// split.
///
/// Samples are [context], classes 256, labels one a position. Local. Throws DataError where nothing is found
/// or a split has not even one sample, UsageError for a context below 1.
std::shared_ptr<const Dataset> load_text(FileSystem& files, const std::filesystem::path& path,
                                         std::int64_t context, Split split);

}  // namespace lockstep
