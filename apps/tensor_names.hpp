#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/state/tensor.hpp>

namespace lockstep {

/// How a file for other programs names and lays out what a network has learned.
enum class TensorNames {
  lockstep,  ///< "model/residual0/main/conv0/weight", as in a checkpoint
  torch      ///< "residual0.main.conv0.weight", as PyTorch's state_dict has it, channels first
};

/// "lockstep" or "torch". Throws UsageError for another word.
TensorNames tensor_names(std::string_view word);

/// The name in such a file of what a checkpoint has at `path`; empty for what PyTorch has no name for
/// (slots, settings).
std::string name_in_file(std::string_view path, TensorNames names);

/// The shape there: PyTorch has the weights of dense layers as [outputs, inputs], those of convolutions
/// channels first; everything else is the same.
Shape shape_in_file(std::string_view path, const Shape& shape, TensorNames names);

/// The element of ours that is element 0, 1, 2... there; empty where the order is the same.
std::vector<std::size_t> order_in_file(std::string_view path, const Shape& shape, TensorNames names);

}  // namespace lockstep
