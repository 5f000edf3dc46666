#include <algorithm>
#include <charconv>

#include <fmt/format.h>

#include <lockstep/checkpoint/names.hpp>

namespace lockstep {
namespace {

constexpr std::string_view kExtension = ".h5";
constexpr std::size_t kMaxNameLength = 128;

template <class Number>
std::optional<Number> parse_whole(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

bool is_plain_name(std::string_view name) noexcept {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return !name.empty() && name.size() <= kMaxNameLength && name.front() != '.' &&
         std::all_of(name.begin(), name.end(), allowed);
}

std::string to_file_name(std::string_view basename, const CheckpointName& name) {
  if (name.suffix == 0) return fmt::format("{}-{:08}{}", basename, name.step, kExtension);
  return fmt::format("{}-{:08}-{}{}", basename, name.step, name.suffix, kExtension);
}

std::optional<CheckpointName> parse_file_name(std::string_view basename, std::string_view file) {
  std::string_view rest = file;
  if (!rest.starts_with(basename) || !rest.ends_with(kExtension)) return std::nullopt;
  if (rest.size() < basename.size() + kExtension.size() + 1) return std::nullopt;
  rest.remove_prefix(basename.size());
  rest.remove_suffix(kExtension.size());
  if (rest.front() != '-') return std::nullopt;
  rest.remove_prefix(1);
  CheckpointName name;
  if (const auto dash = rest.find('-'); dash != std::string_view::npos) {
    const auto suffix = parse_whole<int>(rest.substr(dash + 1));
    if (!suffix || *suffix < 1) return std::nullopt;
    name.suffix = *suffix;
    rest = rest.substr(0, dash);
  }
  const auto step = parse_whole<std::int64_t>(rest);
  if (!step || *step < 0) return std::nullopt;
  name.step = *step;
  // Only the canonical spelling counts, so that two files never mean the same name.
  if (to_file_name(basename, name) != file) return std::nullopt;
  return name;
}

bool is_checkpoint_name(std::string_view file) {
  if (!is_plain_name(file)) return false;
  // The basename may hold dashes itself, so each is tried.
  for (auto dash = file.find('-', 1); dash != std::string_view::npos; dash = file.find('-', dash + 1)) {
    if (parse_file_name(file.substr(0, dash), file)) return true;
  }
  return false;
}

std::string shard_name(std::string_view basename, std::uint64_t save, int number) {
  return fmt::format("{}.{:016x}.shard{}{}", basename, save, number, kExtension);
}

bool is_shard_name(std::string_view basename, std::string_view file) {
  constexpr std::size_t kDigits = 16;
  constexpr std::string_view kShard = ".shard";
  std::string_view rest = file;
  if (!rest.starts_with(basename) || !rest.ends_with(kExtension)) return false;
  rest.remove_prefix(basename.size());
  if (rest.size() < 1 + kDigits + kShard.size() + kExtension.size()) return false;
  rest.remove_suffix(kExtension.size());
  const auto number = parse_whole<int>(rest.substr(1 + kDigits + kShard.size()));
  std::uint64_t save = 0;
  const char* const digits = rest.data() + 1;
  const auto [end, error] = std::from_chars(digits, digits + kDigits, save, 16);
  // Only the canonical spelling counts.
  return number && *number >= 0 && error == std::errc{} && end == digits + kDigits &&
         shard_name(basename, save, *number) == file;
}

std::string temporary_name(std::string_view name, std::uint64_t nonce) {
  return fmt::format(".{}.tmp.{:016x}", name, nonce);
}

bool is_temporary_checkpoint(std::string_view basename, std::string_view file) {
  if (!file.starts_with('.')) return false;
  const auto mark = file.rfind(".tmp.");
  return mark != std::string_view::npos && mark > 1 &&
         parse_file_name(basename, file.substr(1, mark - 1)).has_value();
}

std::string damaged_name(std::string_view name, int k) {
  return fmt::format("{}.damaged-{}", name, k);
}
std::string superseded_name(std::string_view name, int k) {
  return fmt::format("{}.superseded-{}", name, k);
}

bool is_set_aside(std::string_view file) {
  for (const std::string_view mark : {".damaged-", ".superseded-"}) {
    const auto found = file.rfind(mark);
    if (found != std::string_view::npos && parse_whole<int>(file.substr(found + mark.size()))) return true;
  }
  return false;
}

}  // namespace lockstep
