#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

namespace lockstep {

/// Memory of the operating system that processes of one host share by its name. It goes when all have let go
/// of it and the name was removed.
class SharedSegment {
 public:
  SharedSegment() = default;

  /// Makes one with a new name, zeroed, and reserves its memory. Throws IoError when there is not as much.
  static SharedSegment create(std::size_t bytes);

  /// Joins one of `bytes` that another process has made. Throws IoError.
  static SharedSegment open(const std::string& name, std::size_t bytes);

  SharedSegment(SharedSegment&& other) noexcept
      : name_(std::move(other.name_)), bytes_(std::exchange(other.bytes_, {})) {}
  SharedSegment& operator=(SharedSegment&& other) noexcept {
    std::swap(name_, other.name_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~SharedSegment();

  const std::string& name() const noexcept { return name_; }
  std::span<std::byte> bytes() const noexcept { return bytes_; }

  /// From now on nobody can open it.
  void remove_name() const noexcept;

 private:
  SharedSegment(std::string name, int file, std::size_t bytes);

  std::string name_;
  std::span<std::byte> bytes_;
};

}  // namespace lockstep
