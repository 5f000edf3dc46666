#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

/// Gives parameters and buffers of `state` the values that they have in a safetensors file, which has
/// PyTorch's names and layout, or ours (see TensorNames); which is seen from the names in it.
///
/// `chosen` empty: all of them, and everything in the file must be of use, so that nothing is forgotten
/// silently (but PyTorch's counts of batches, and in files of ours what is no parameter and no buffer).
/// Otherwise those named: "/model/dense0/weight", all of a folder "/model/dense0/", or one that has another
/// name in the file: "/model/dense0/weight=encoder.fc.weight".
///
/// Values of F64, BF16 and F16 are converted. Throws EnvironmentError with the whole list of what is missing,
/// of another shape or left over, and `state` is then untouched; DataError for a file that is damaged or
/// not there; UsageError for a name that is none. Local.
void import_tensors(FileSystem& files, const std::filesystem::path& path,
                    const std::vector<std::string>& chosen, State& state, const Log& log);

}  // namespace lockstep
