#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace lockstep {

using Shape = std::vector<std::int64_t>;

/// Number of elements of `shape`; 1 for a scalar (no dimensions).
std::int64_t element_count(const Shape& shape) noexcept;

/// "[784, 512]".
std::string to_string(const Shape& shape);

/// A named range of one arena, shared by all arenas of the same layout: a parameter's gradient and its
/// optimizer slots lie at the same offset as the parameter. A cheap handle; the State that made it keeps the
/// storage.
class Tensor {
 public:
  Tensor() = default;

  const std::string& name() const noexcept { return record_->name; }
  const Shape& shape() const noexcept { return record_->shape; }
  std::size_t offset() const noexcept { return record_->offset; }  ///< elements from the arena's start
  std::size_t size() const noexcept { return record_->size; }      ///< elements

  /// The values themselves. Valid once the State is frozen.
  std::span<float> values() const noexcept { return {record_->data, record_->size}; }

  /// The same range of another arena of this layout, such as a gradient arena.
  std::span<float> in(std::span<float> arena) const noexcept { return arena.subspan(offset(), size()); }

  /// What a Tensor points to. Made by State.
  struct Record {
    std::string name;
    Shape shape;
    std::size_t offset = 0;
    std::size_t size = 0;
    float* data = nullptr;
  };
  explicit Tensor(std::shared_ptr<const Record> record) : record_(std::move(record)) {}

 private:
  std::shared_ptr<const Record> record_;
};

}  // namespace lockstep
