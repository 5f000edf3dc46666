#pragma once

#include <filesystem>
#include <memory>

#include <lockstep/base/files.hpp>
#include <lockstep/data/dataset.hpp>
#include <lockstep/data/image_dataset.hpp>

namespace lockstep {

/// CIFAR-10 in its binary form: data_batch_1.bin to data_batch_5.bin, or test_batch.bin, of records of one
/// label and 32 x 32 pixels of red, then green, then blue. Samples are [32, 32, 3], pixels scaled to [0, 1].
/// Files may hold fewer records than the original's 10,000. Local. Throws DataError for missing and damaged
/// files, FileError when reading fails.
std::shared_ptr<const Dataset> load_cifar10(FileSystem& files, const std::filesystem::path& directory,
                                            Split split);

}  // namespace lockstep
