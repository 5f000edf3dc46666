#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/base/digest.hpp>
#include <lockstep/state/tensor.hpp>

namespace lockstep {

enum class ElementType : std::uint8_t { f32, f64, i32, i64, u8, text };

std::size_t size_in_bytes(ElementType type) noexcept;
std::string_view to_string(ElementType type) noexcept;

/// One thing that a checkpoint holds: a name, a type, a shape and where the bytes are. Does not own the
/// bytes. `text` has the shape {length in bytes} and is UTF-8 without a terminator.
struct Entry {
  std::string path;  ///< "/model/dense0/weight", "/slots/velocity/dense0/weight", "/session/global_step"
  ElementType type = ElementType::f32;
  Shape shape;
  std::byte* data = nullptr;

  std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(element_count(shape)) * size_in_bytes(type);
  }
};

/// Where hooks keep what they want to find again; a checkpoint that has none of it, or more, fits all the
/// same.
inline constexpr std::string_view kHooksFolder = "/session/hooks/";

/// Digest over name, type, shape and bytes of each entry, in the order of the names: independent of the order
/// of `entries`, of the layout in memory and of the ranks. `prefix` picks a part ("/model/").
Digest content_digest(std::span<const Entry> entries, std::string_view prefix = "/");

}  // namespace lockstep
