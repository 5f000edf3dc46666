#include "tensor_export.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <libdeflate.h>
#include <nlohmann/json.hpp>

#include <lockstep/base/error.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/checkpoint/names.hpp>

namespace lockstep {
namespace {

static_assert(std::endian::native == std::endian::little, "values are written as they lie in memory");

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

std::span<const std::byte> values_of(const Entry& entry) {
  return {entry.data, entry.bytes()};
}

/// "model/dense0/weight".
std::string member_name(const Entry& entry) {
  return entry.path.substr(1);
}

/// Little-endian fields one after the other.
class Fields {
 public:
  template <class... Field>
  explicit Fields(Field... fields) {
    (append(fields), ...);
  }
  template <class Field>
  void append(Field field) {
    const auto* from = reinterpret_cast<const char*>(&field);
    text_.append(from, sizeof field);
  }
  void append_text(std::string_view text) { text_ += text; }
  const std::string& text() const noexcept { return text_; }

 private:
  std::string text_;
};

/// What numpy writes in front of the values (NEP 1, version 1.0).
std::string npy_header(const Entry& entry) {
  std::string type;
  std::string shape;
  switch (entry.type) {
    case ElementType::f32:
      type = "<f4";
      break;
    case ElementType::f64:
      type = "<f8";
      break;
    case ElementType::i32:
      type = "<i4";
      break;
    case ElementType::i64:
      type = "<i8";
      break;
    case ElementType::u8:
      type = "|u1";
      break;
    case ElementType::text:
      type = fmt::format("|S{}", entry.bytes());
      break;
  }
  if (entry.type != ElementType::text) {
    for (const std::int64_t n : entry.shape) shape += fmt::format("{}, ", n);
  }
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", type, shape);
  constexpr std::size_t kBefore = 10;
  constexpr std::size_t kAlignment = 64;
  header.append(kAlignment - 1 - (kBefore + header.size()) % kAlignment, ' ');
  header += '\n';
  Fields start;
  start.append_text(std::string_view("\x93NUMPY\x01\x00", 8));
  start.append(static_cast<std::uint16_t>(header.size()));
  return start.text() + header;
}

/// A zip archive without compression, with the large fields (zip64) throughout, so that no size is special.
void write_npz(const CheckpointFile& file, WritableFile& out) {
  constexpr std::uint32_t kLocal = 0x04034b50;
  constexpr std::uint32_t kCentral = 0x02014b50;
  constexpr std::uint32_t kEnd64 = 0x06064b50;
  constexpr std::uint32_t kLocator64 = 0x07064b50;
  constexpr std::uint32_t kEnd = 0x06054b50;
  constexpr std::uint16_t kVersion = 45;  // knows zip64
  constexpr std::uint16_t kUtf8Names = 1 << 11;
  constexpr std::uint16_t kDate = (1 << 5) | 1;  // 1980-01-01, for equal files of equal checkpoints
  constexpr std::uint16_t kZip64 = 1;
  constexpr std::uint32_t kElsewhere = 0xffffffff;
  constexpr std::uint16_t kElsewhere16 = 0xffff;
  const std::uint16_t none16 = 0;
  const std::uint32_t none32 = 0;
  std::uint64_t at = 0;
  const auto write = [&](std::span<const std::byte> bytes) {
    out.write(bytes);
    at += bytes.size();
  };
  std::string central;
  for (const Entry& entry : file.entries()) {
    const std::string name = member_name(entry) + ".npy";
    const std::string header = npy_header(entry);
    const auto values = values_of(entry);
    const std::uint32_t crc =
        libdeflate_crc32(libdeflate_crc32(0, header.data(), header.size()), values.data(), values.size());
    const std::uint64_t size = header.size() + values.size();
    const auto name_length = static_cast<std::uint16_t>(name.size());
    const std::uint64_t start = at;
    Fields local(kLocal, kVersion, kUtf8Names, none16, none16, kDate, crc, kElsewhere, kElsewhere,
                 name_length, static_cast<std::uint16_t>(20));
    local.append_text(name);
    local.append_text(Fields(kZip64, static_cast<std::uint16_t>(16), size, size).text());
    write(bytes_of(local.text()));
    write(bytes_of(header));
    write(values);
    Fields entry_of(kCentral, kVersion, kVersion, kUtf8Names, none16, none16, kDate, crc, kElsewhere,
                    kElsewhere, name_length, static_cast<std::uint16_t>(28), none16, none16, none16, none32,
                    kElsewhere);
    entry_of.append_text(name);
    entry_of.append_text(Fields(kZip64, static_cast<std::uint16_t>(24), size, size, start).text());
    central += entry_of.text();
  }
  const std::uint64_t central_at = at;
  const std::uint64_t count = file.entries().size();
  write(bytes_of(central));
  const std::uint64_t end_at = at;
  constexpr std::uint64_t kEnd64Bytes = 44;  // of what follows this field
  write(bytes_of(Fields(kEnd64, kEnd64Bytes, kVersion, kVersion, none32, none32, count, count,
                        std::uint64_t{central.size()}, central_at)
                     .text()));
  write(bytes_of(Fields(kLocator64, none32, end_at, std::uint32_t{1}).text()));
  write(bytes_of(
      Fields(kEnd, none16, none16, kElsewhere16, kElsewhere16, kElsewhere, kElsewhere, none16).text()));
}

std::string_view safetensors_type(ElementType type) {
  switch (type) {
    case ElementType::f32:
      return "F32";
    case ElementType::f64:
      return "F64";
    case ElementType::i32:
      return "I32";
    case ElementType::i64:
      return "I64";
    case ElementType::u8:
    case ElementType::text:
      break;
  }
  return "U8";
}

/// The values in the order of the file, where that is another one.
std::vector<float> reordered(const Entry& entry, TensorNames names) {
  const std::vector<std::size_t> order = order_in_file(entry.path, entry.shape, names);
  std::vector<float> values(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    std::memcpy(&values[i], entry.data + order[i] * sizeof(float), sizeof(float));
  }
  return values;
}

void write_safetensors(const CheckpointFile& file, TensorNames names, WritableFile& out) {
  nlohmann::json header = {{"__metadata__", nlohmann::json::object()}};
  std::vector<const Entry*> tensors;
  for (const Entry& entry : file.entries()) {
    if (entry.type == ElementType::text) {
      header["__metadata__"][member_name(entry)] =
          std::string(reinterpret_cast<const char*>(entry.data), entry.bytes());
    } else if (!name_in_file(entry.path, names).empty()) {
      tensors.push_back(&entry);
    }
  }
  // The widest first, so that each is aligned.
  std::stable_sort(tensors.begin(), tensors.end(), [](const Entry* left, const Entry* right) {
    return size_in_bytes(left->type) > size_in_bytes(right->type);
  });
  std::uint64_t at = 0;
  for (const Entry* entry : tensors) {
    header[name_in_file(entry->path, names)] = {{"dtype", safetensors_type(entry->type)},
                                                {"shape", shape_in_file(entry->path, entry->shape, names)},
                                                {"data_offsets", {at, at + entry->bytes()}}};
    at += entry->bytes();
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  constexpr std::size_t kAlignment = 8;
  text.append((kAlignment - text.size() % kAlignment) % kAlignment, ' ');
  out.write(bytes_of(Fields(std::uint64_t{text.size()}).text()));
  out.write(bytes_of(text));
  for (const Entry* entry : tensors) {
    const std::vector<float> values = reordered(*entry, names);
    out.write(values.empty() ? values_of(*entry) : std::as_bytes(std::span(values)));
  }
}

}  // namespace

void export_tensors(const CheckpointFile& file, FileSystem& files, const std::filesystem::path& path,
                    TensorNames names) {
  const bool npz = path.extension() == ".npz";
  if (!npz && path.extension() != ".safetensors") {
    throw UsageError(fmt::format("--export '{}' ends in neither .npz nor .safetensors, the formats there are",
                                 path.string()));
  }
  if (npz && names != TensorNames::lockstep) {
    throw UsageError("--names torch is for files that end in .safetensors");
  }
  const auto directory =
      files.open_directory(path.has_parent_path() ? path.parent_path() : std::filesystem::path("."));
  const std::string name = path.filename().string();
  if (directory->exists(name)) {
    throw UsageError(fmt::format("--export '{}' exists already; give another name", path.string()));
  }
  const std::string temporary = temporary_name(name, SystemIdentity().nonce());
  try {
    const auto out = directory->create(temporary);
    npz ? write_npz(file, *out) : write_safetensors(file, names, *out);
    out->sync();
    out->close();
    directory->rename(temporary, name);
  } catch (...) {
    try {
      if (directory->exists(temporary)) directory->remove(temporary);
    } catch (const FileError&) {
      // What made the export fail is told.
    }
    throw;
  }
  directory->sync();
}

}  // namespace lockstep
