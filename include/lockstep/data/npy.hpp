#pragma once

#include <filesystem>
#include <memory>

#include <lockstep/base/files.hpp>
#include <lockstep/data/dataset.hpp>
#include <lockstep/data/image_dataset.hpp>

namespace lockstep {

/// Samples with values to predict, in NumPy's format: `directory` holds train_inputs.npy and
/// train_targets.npy, or test_inputs.npy and test_targets.npy, each [samples, ...] of float32 or float64
/// (little-endian, C order; float64 is rounded). Local. Throws DataError for missing and damaged files, other
/// types, and numbers of samples that differ; FileError when reading fails.
std::shared_ptr<const Dataset> load_npy(FileSystem& files, const std::filesystem::path& directory,
                                        Split split);

}  // namespace lockstep
