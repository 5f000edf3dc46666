#include "tensor_import.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <lockstep/base/error.hpp>

#include "tensor_names.hpp"

namespace lockstep {
namespace {

constexpr std::uint64_t kLargest = std::uint64_t{1} << 40;

struct Stored {
  std::string type;
  Shape shape;
  std::span<const std::byte> bytes;
};

float from_half(std::uint16_t bits) {
  const int exponent = (bits >> 10U) & 31U;
  const auto fraction = static_cast<float>(bits & 1023U);
  float value = 0;
  if (exponent == 0) {
    value = std::ldexp(fraction, -24);
  } else if (exponent == 31) {
    value = fraction == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  } else {
    value = std::ldexp(fraction + 1024, exponent - 25);
  }
  return (bits >> 15U) != 0 ? -value : value;
}

/// Throws what nlohmann's library throws for anything else, which it would turn into such numbers.
std::vector<std::uint64_t> whole_numbers(const nlohmann::json& list) {
  std::vector<std::uint64_t> numbers;
  for (const nlohmann::json& item : list.get_ref<const nlohmann::json::array_t&>()) {
    numbers.push_back(item.get_ref<const nlohmann::json::number_unsigned_t&>());
  }
  return numbers;
}

std::optional<std::size_t> bytes_each(std::string_view type) {
  if (type == "F64") return 8;
  if (type == "F32") return 4;
  if (type == "F16" || type == "BF16") return 2;
  return std::nullopt;
}

float value_at(const Stored& tensor, std::size_t i) {
  const auto read = [&]<class T>(T value) {
    std::memcpy(&value, tensor.bytes.data() + i * sizeof value, sizeof value);
    return value;
  };
  if (tensor.type == "F32") return read(0.0F);
  if (tensor.type == "F64") return static_cast<float>(read(0.0));
  const auto bits = read(std::uint16_t{});
  return tensor.type == "F16" ? from_half(bits)
                              : std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
}

/// The tensors of a file, which lies in memory.
class SafeTensors {
 public:
  SafeTensors(FileSystem& files, const std::filesystem::path& path) : path_(path), content_(read(files)) {
    static_assert(std::endian::native == std::endian::little, "values are taken as they lie in the file");
    std::uint64_t length = 0;
    if (content_.size() < sizeof length) damaged("it is too short");
    std::memcpy(&length, content_.data(), sizeof length);
    if (length > content_.size() - sizeof length) damaged("its header is cut off");
    const auto values = std::span(content_).subspan(sizeof length + length);
    const char* text = reinterpret_cast<const char*>(content_.data()) + sizeof length;
    const auto header = nlohmann::json::parse(text, text + length, seen_once(), false);
    if (!header.is_object()) damaged("its header is no JSON object");
    for (const auto& [name, entry] : header.items()) {
      if (name != "__metadata__") tensors_[name] = parse(name, entry, values);
    }
    check_places(values);
  }

  const std::map<std::string, Stored>& tensors() const noexcept { return tensors_; }

 private:
  [[noreturn]] void damaged(const std::string& problem) const {
    throw DataError(fmt::format("'{}' is no good safetensors file: {}", path_.string(), problem));
  }

  /// The format wants every name once; a parser alone would take the last.
  nlohmann::json::parser_callback_t seen_once() const {
    return [this, names = std::set<std::string>()](int depth, nlohmann::json::parse_event_t event,
                                                   const nlohmann::json& key) mutable {
      const bool is_name = event == nlohmann::json::parse_event_t::key && depth == 1;
      if (is_name && !names.insert(key.get<std::string>()).second) {
        damaged(fmt::format("'{}' stands in it twice", key.get<std::string>()));
      }
      return true;
    };
  }

  /// And the values one tensor behind the other: what overlaps or is left out was not meant so.
  void check_places(std::span<const std::byte> values) const {
    std::vector<std::pair<std::size_t, std::size_t>> places;
    for (const auto& [name, tensor] : tensors_) {
      const auto first = static_cast<std::size_t>(tensor.bytes.data() - values.data());
      places.emplace_back(first, first + tensor.bytes.size());
    }
    std::ranges::sort(places);
    std::size_t end = 0;
    for (const auto& [first, last] : places) {
      if (first != end) {
        damaged(fmt::format("{} at byte {} of its values",
                            first < end ? "tensors overlap" : "there is a hole", std::min(first, end)));
      }
      end = last;
    }
    if (end != values.size()) damaged(fmt::format("{} bytes belong to no tensor", values.size() - end));
  }

  std::vector<std::byte> read(FileSystem& files) const {
    try {
      return read_all(*files.open_file(path_), kLargest);
    } catch (const FileError& error) {
      if (error.code() != ENOENT && error.code() != ENOTDIR) throw;
      throw DataError(fmt::format("there is no '{}'; name a safetensors file with --import", path_.string()));
    }
  }

  Stored parse(const std::string& name, const nlohmann::json& entry,
               std::span<const std::byte> values) const {
    Stored tensor;
    std::vector<std::uint64_t> offsets;
    try {
      tensor.type = entry.at("dtype").get<std::string>();
      for (const std::uint64_t n : whole_numbers(entry.at("shape"))) {
        tensor.shape.push_back(static_cast<std::int64_t>(n));
      }
      offsets = whole_numbers(entry.at("data_offsets"));
    } catch (const nlohmann::json::exception&) {
      damaged(fmt::format("'{}' has no type, shape and offsets", name));
    }
    if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > values.size()) {
      damaged(fmt::format("the values of '{}' lie outside of it", name));
    }
    tensor.bytes = values.subspan(offsets[0], offsets[1] - offsets[0]);
    const auto each = bytes_each(tensor.type);
    if (!each) return tensor;  // of no use here, perhaps nobody wants it
    std::uint64_t size = *each;
    for (const std::int64_t n : tensor.shape) {
      const auto count = static_cast<std::uint64_t>(n);
      size = count > 0 && size > kLargest / count ? kLargest + 1 : size * count;
    }
    if (size != tensor.bytes.size()) {
      damaged(fmt::format("'{}' has {} bytes, not what its shape says", name, tensor.bytes.size()));
    }
    return tensor;
  }

  std::filesystem::path path_;
  std::vector<std::byte> content_;
  std::map<std::string, Stored> tensors_;
};

/// What is to be filled, and with what.
struct Wish {
  Entry target;
  std::string name;  ///< in the file
};

bool is_learned(std::string_view path) {
  return path.starts_with("/model/") || path.starts_with("/buffers/");
}

std::vector<Wish> wishes(const State& state, const std::vector<std::string>& chosen, TensorNames names) {
  std::vector<Wish> all;
  for (const Entry& entry : state.entries()) {
    if (is_learned(entry.path)) all.push_back({entry, name_in_file(entry.path, names)});
  }
  if (chosen.empty()) return all;
  std::vector<Wish> some;
  for (const std::string& word : chosen) {
    const auto equals = word.find('=');
    const std::string path = word.substr(0, equals);
    bool found = false;
    for (const Wish& wish : all) {
      const bool whole_folder = path.ends_with('/') && equals == std::string::npos;
      if (wish.target.path != path && !(whole_folder && wish.target.path.starts_with(path))) continue;
      found = true;
      some.push_back(wish);
      if (equals != std::string::npos) some.back().name = word.substr(equals + 1);
    }
    if (!found) {
      throw UsageError(
          fmt::format("--import_tensors '{}': the model has no such parameter or buffer; give a name such as "
                      "{}, or a folder "
                      "that ends in /",
                      word, all.empty() ? "/model/dense0/weight" : all.front().target.path));
    }
  }
  return some;
}

/// What stands in the file and nobody asked for.
void find_left_over(const std::map<std::string, Stored>& tensors, const std::vector<Wish>& wanted,
                    TensorNames names, std::vector<std::string>& problems) {
  std::set<std::string_view> used;
  for (const Wish& wish : wanted) used.insert(wish.name);
  for (const auto& [name, tensor] : tensors) {
    const bool of_interest = names == TensorNames::torch
                                 ? !name.ends_with("num_batches_tracked")
                                 : name.starts_with("model/") || name.starts_with("buffers/");
    if (of_interest && !used.contains(name)) {
      problems.push_back(fmt::format("left over '{}' {}", name, to_string(tensor.shape)));
    }
  }
}

}  // namespace

void import_tensors(FileSystem& files, const std::filesystem::path& path,
                    const std::vector<std::string>& chosen, State& state, const Log& log) {
  const SafeTensors file(files, path);
  const auto& tensors = file.tensors();
  const bool ours =
      std::ranges::any_of(tensors, [](const auto& tensor) { return tensor.first.starts_with("model/"); });
  const TensorNames names = ours ? TensorNames::lockstep : TensorNames::torch;
  const std::vector<Wish> wanted = wishes(state, chosen, names);
  std::vector<std::string> problems;
  for (const Wish& wish : wanted) {
    const Shape shape = shape_in_file(wish.target.path, wish.target.shape, names);
    const auto found = tensors.find(wish.name);
    if (found == tensors.end()) {
      problems.push_back(fmt::format("missing '{}' {}", wish.name, to_string(shape)));
    } else if (found->second.shape != shape) {
      problems.push_back(fmt::format("different '{}': {} (the model expects {})", wish.name,
                                     to_string(found->second.shape), to_string(shape)));
    } else if (!bytes_each(found->second.type)) {
      problems.push_back(fmt::format("different '{}': {} (F32, F64, BF16 and F16 can be taken)", wish.name,
                                     found->second.type));
    }
  }
  if (chosen.empty()) find_left_over(tensors, wanted, names, problems);
  if (!problems.empty()) {
    throw EnvironmentError(fmt::format(
        "'{}' does not fit the model:\n  {}\ngive the model that it was written for, or name what is to "
        "be taken with --import_tensors",
        path.string(), fmt::join(problems, "\n  ")));
  }
  for (const Wish& wish : wanted) {
    const Stored& stored = tensors.at(wish.name);
    std::size_t not_finite = 0;
    const std::size_t elements = stored.bytes.size() / *bytes_each(stored.type);
    for (std::size_t i = 0; i < elements; ++i) not_finite += std::isfinite(value_at(stored, i)) ? 0 : 1;
    if (not_finite > 0) {
      throw DataError(
          fmt::format("'{}': {} of the {} values of '{}' are not finite as float32; nothing can be "
                      "trained from them",
                      path.string(), not_finite, elements, wish.name));
    }
  }
  for (const Wish& wish : wanted) {
    const Stored& stored = tensors.at(wish.name);
    const std::vector<std::size_t> order = order_in_file(wish.target.path, wish.target.shape, names);
    auto* values = reinterpret_cast<float*>(wish.target.data);
    const auto count = static_cast<std::size_t>(element_count(wish.target.shape));
    for (std::size_t i = 0; i < count; ++i) values[order.empty() ? i : order[i]] = value_at(stored, i);
  }
  log.info(fmt::format("{} tensors start with the values of {} ({})", wanted.size(), path.string(),
                       ours ? "our names" : "PyTorch's names and layout"));
}

}  // namespace lockstep
