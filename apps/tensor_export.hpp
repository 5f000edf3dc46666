#pragma once

#include <filesystem>

#include <lockstep/base/files.hpp>
#include <lockstep/checkpoint/reader.hpp>

#include "tensor_names.hpp"

namespace lockstep {

/// Writes all of a checkpoint for other programs: ".npz" (numpy.load; a tensor is
/// `file["model/dense0/weight"]`, a setting bytes) or ".safetensors" (settings are its metadata). Bytes are
/// those of the checkpoint, unless `names` are PyTorch's: then a .safetensors file has parameters and buffers
/// as a state_dict of a module of that structure has them (see TensorNames). The file comes into being whole;
/// one that exists is not touched. Throws UsageError for another ending and for a name that is taken, and
/// FileError. Local.
void export_tensors(const CheckpointFile& file, FileSystem& files, const std::filesystem::path& path,
                    TensorNames names = TensorNames::lockstep);

}  // namespace lockstep
