#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string_view>

#include <lockstep/reduce/tally.hpp>

namespace lockstep {

/// A few named numbers of one step, such as {{"loss", 0.5}, {"accuracy", 0.9}}. Names must outlive the
/// session (string literals do) and come in the same order on all ranks. At most kMaxValues; more throw
/// UsageError. Does not allocate.
class StepValues {
 public:
  struct Value {
    std::string_view name;
    double value = 0;
  };

  StepValues() = default;
  StepValues(std::initializer_list<Value> values);

  void set(std::string_view name, double value);

  /// nullopt when there is none of this name.
  std::optional<double> find(std::string_view name) const noexcept;

  std::span<const Value> all() const noexcept { return {values_.data(), count_}; }
  std::span<Value> all() noexcept { return {values_.data(), count_}; }

  /// A number that differs, most likely, where the names or their order differ.
  std::uint64_t names_digest() const noexcept;

 private:
  std::array<Value, kMaxValues> values_{};
  std::size_t count_ = 0;
};

}  // namespace lockstep
