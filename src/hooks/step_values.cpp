#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/step_values.hpp>

namespace lockstep {

StepValues::StepValues(std::initializer_list<Value> values) {
  for (const Value& value : values) set(value.name, value.value);
}

void StepValues::set(std::string_view name, double value) {
  for (Value& known : all()) {
    if (known.name == name) {
      known.value = value;
      return;
    }
  }
  if (count_ == values_.size()) {
    throw UsageError(fmt::format("a step returns more than {} values ('{}' is too many); return fewer",
                                 values_.size(), name));
  }
  values_[count_++] = {name, value};
}

std::optional<double> StepValues::find(std::string_view name) const noexcept {
  for (const Value& value : all()) {
    if (value.name == name) return value.value;
  }
  return std::nullopt;
}

std::uint64_t StepValues::names_digest() const noexcept {
  // FNV-1a; every name ends in a byte that is in none of them.
  std::uint64_t digest = 0xcbf29ce484222325;
  const auto mix = [&](unsigned char byte) { digest = (digest ^ byte) * 0x100000001b3; };
  for (const Value& value : all()) {
    for (const char c : value.name) mix(static_cast<unsigned char>(c));
    mix(0);
  }
  return digest;
}

}  // namespace lockstep
