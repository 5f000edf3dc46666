#include "tensor_names.hpp"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>

namespace lockstep {
namespace {

constexpr std::string_view kModel = "/model/";
constexpr std::string_view kBuffers = "/buffers/";

/// "conv" of "/model/residual0/main/conv0/weight".
std::string_view layer_of(std::string_view path) {
  path = path.substr(0, path.rfind('/'));
  path = path.substr(path.rfind('/') + 1);
  return path.substr(0, path.find_last_not_of("0123456789") + 1);
}

/// Which of our dimensions each of PyTorch's is; empty where they are the same.
std::vector<std::size_t> dimensions_in_torch(std::string_view path, const Shape& shape) {
  if (!path.starts_with(kModel) || !path.ends_with("/weight")) return {};
  if (layer_of(path) == "dense" && shape.size() == 2) return {1, 0};
  if (!layer_of(path).starts_with("conv") || shape.size() < 3) return {};
  // [height, width, in, out] becomes [out, in, height, width], with or without a depth.
  std::vector<std::size_t> order{shape.size() - 1, shape.size() - 2};
  for (std::size_t d = 0; d + 2 < shape.size(); ++d) order.push_back(d);
  return order;
}

}  // namespace

TensorNames tensor_names(std::string_view word) {
  if (word == "lockstep") return TensorNames::lockstep;
  if (word == "torch") return TensorNames::torch;
  throw UsageError(fmt::format("names '{}' are unknown; choose lockstep or torch", word));
}

std::string name_in_file(std::string_view path, TensorNames names) {
  if (names == TensorNames::lockstep) return std::string(path.substr(1));
  const bool model = path.starts_with(kModel);
  if (!model && !path.starts_with(kBuffers)) return "";
  std::string name(path.substr(model ? kModel.size() : kBuffers.size()));
  const auto end_with = [&](std::string_view ours, std::string_view theirs) {
    if (name.ends_with(ours)) name.replace(name.size() - ours.size(), ours.size(), theirs);
  };
  end_with("/scale", "/weight");
  end_with("/shift", "/bias");
  end_with("/running_variance", "/running_var");
  std::ranges::replace(name, '/', '.');
  return name;
}

Shape shape_in_file(std::string_view path, const Shape& shape, TensorNames names) {
  if (names == TensorNames::lockstep) return shape;
  const std::vector<std::size_t> order = dimensions_in_torch(path, shape);
  if (order.empty()) return shape;
  Shape theirs;
  for (const std::size_t d : order) theirs.push_back(shape[d]);
  return theirs;
}

std::vector<std::size_t> order_in_file(std::string_view path, const Shape& shape, TensorNames names) {
  if (names == TensorNames::lockstep) return {};
  const std::vector<std::size_t> order = dimensions_in_torch(path, shape);
  if (order.empty()) return {};
  std::vector<std::size_t> strides(shape.size(), 1);
  for (std::size_t d = shape.size() - 1; d-- > 0;) {
    strides[d] = strides[d + 1] * static_cast<std::size_t>(shape[d + 1]);
  }
  std::vector<std::size_t> elements{0};
  for (const std::size_t d : order) {
    std::vector<std::size_t> wider;
    wider.reserve(elements.size() * static_cast<std::size_t>(shape[d]));
    for (const std::size_t element : elements) {
      for (std::size_t i = 0; i < static_cast<std::size_t>(shape[d]); ++i)
        wider.push_back(element + i * strides[d]);
    }
    elements = std::move(wider);
  }
  return elements;
}

}  // namespace lockstep
