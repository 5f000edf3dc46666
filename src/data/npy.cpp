#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/npy.hpp>

namespace lockstep {
namespace {

constexpr std::uint64_t kLargest = std::uint64_t{1} << 38;

struct Array {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

[[noreturn]] void damaged(const std::filesystem::path& path, const std::string& problem) {
  throw DataError(
      fmt::format("data file '{}': {}; write it with numpy.save, as float32", path.string(), problem));
}

/// What stands behind 'key': in the header, which is a Python dictionary of one line.
std::string_view field(const std::filesystem::path& path, std::string_view header, std::string_view key) {
  const auto at = header.find(fmt::format("'{}':", key));
  if (at == std::string_view::npos) damaged(path, fmt::format("its header has no '{}'", key));
  std::string_view rest = header.substr(at + key.size() + 3);
  rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
  return rest;
}

std::vector<std::int64_t> parse_shape(const std::filesystem::path& path, std::string_view text) {
  const auto end = text.find(')');
  if (!text.starts_with('(') || end == std::string_view::npos) damaged(path, "its header has no shape");
  std::vector<std::int64_t> shape;
  std::int64_t number = -1;
  std::int64_t elements = 1;
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  for (const char c : text.substr(1, end)) {
    if (c >= '0' && c <= '9') {
      number = std::max<std::int64_t>(number, 0) * 10 + (c - '0');
      if (number > kMost) damaged(path, "its shape is too large");
    } else if (c == ',' || c == ')') {
      if (number < 0) continue;
      if (number > 0 && elements > kMost / number) damaged(path, "its shape is too large");
      elements *= number;
      shape.push_back(std::exchange(number, -1));
    } else if (c != ' ') {
      damaged(path, "its header has no shape");
    }
  }
  return shape;
}

template <class Stored>
std::vector<float> convert(std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / sizeof(Stored));
  for (std::size_t i = 0; i < values.size(); ++i) {
    Stored value;
    std::memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
    values[i] = static_cast<float>(value);
  }
  return values;
}

Array read_npy(FileSystem& files, const std::filesystem::path& path, Hasher& hasher) {
  static_assert(std::endian::native == std::endian::little, "values are taken as they lie in the file");
  std::unique_ptr<ReadableFile> file;
  try {
    file = files.open_file(path);
  } catch (const FileError& error) {
    if (error.code() != ENOENT && error.code() != ENOTDIR) throw;
    throw DataError(
        fmt::format("data file '{}' is missing; name the directory that holds train_inputs.npy, "
                    "train_targets.npy, test_inputs.npy and test_targets.npy with --data_dir",
                    path.string()));
  }
  const std::vector<std::byte> content = read_all(*file, kLargest);
  hasher.update(content);
  const std::string_view text(reinterpret_cast<const char*>(content.data()), content.size());
  constexpr std::string_view kMagic = "\x93NUMPY";
  if (content.size() < 12 || !text.starts_with(kMagic)) damaged(path, "it is no .npy file");
  const auto byte = [&](std::size_t at) { return std::to_integer<std::size_t>(content[at]); };
  const bool first_version = byte(6) == 1;
  const std::size_t start = first_version ? 10 : 12;
  const std::size_t length = first_version
                                 ? byte(8) + (byte(9) << 8U)
                                 : byte(8) + (byte(9) << 8U) + (byte(10) << 16U) + (byte(11) << 24U);
  if (byte(6) < 1 || byte(6) > 3 || length > content.size() - start) damaged(path, "its header is cut off");
  const std::string_view header = text.substr(start, length);
  const std::string_view type = field(path, header, "descr");
  const bool single = type.starts_with("'<f4'");
  if (!single && !type.starts_with("'<f8'"))
    damaged(path, fmt::format("its type is {}", type.substr(0, type.find(','))));
  if (!field(path, header, "fortran_order").starts_with("False")) damaged(path, "it is in Fortran's order");
  Array array{parse_shape(path, field(path, header, "shape")), {}};
  std::uint64_t elements = 1;
  for (const std::int64_t n : array.shape) elements *= static_cast<std::uint64_t>(n);
  const auto values = std::span(content).subspan(start + length);
  if (array.shape.size() < 2 || elements == 0) {
    damaged(path, "it has no samples; its shape is [samples, ...]");
  }
  if (values.size() != elements * (single ? sizeof(float) : sizeof(double))) {
    damaged(path, fmt::format("it has {} bytes of values, not what its shape says", values.size()));
  }
  array.values = single ? convert<float>(values) : convert<double>(values);
  return array;
}

class Npy final : public Dataset {
 public:
  Npy(Array inputs, Array targets, Digest digest)
      : samples_(inputs.shape.front()),
        sample_shape_(inputs.shape.begin() + 1, inputs.shape.end()),
        target_shape_(targets.shape.begin() + 1, targets.shape.end()),
        inputs_(std::move(inputs.values)),
        targets_(std::move(targets.values)),
        digest_(digest) {}

  std::int64_t size() const noexcept override { return samples_; }
  const std::vector<std::int64_t>& sample_shape() const noexcept override { return sample_shape_; }
  const std::vector<std::int64_t>& target_shape() const noexcept override { return target_shape_; }
  int classes() const noexcept override { return 0; }
  std::int64_t labels_per_sample() const noexcept override { return 0; }
  Digest digest() const override { return digest_; }

  void fill(std::span<const std::int64_t> indices, std::span<float> inputs,
            std::span<std::int32_t> labels) const override {
    if (!labels.empty()) throw InternalError("Npy::fill: there are no labels");
    copy(indices, inputs_, inputs);
  }

  void fill_targets(std::span<const std::int64_t> indices, std::span<float> targets) const override {
    copy(indices, targets_, targets);
  }

 private:
  void copy(std::span<const std::int64_t> indices, const std::vector<float>& from,
            std::span<float> to) const {
    const std::size_t each = from.size() / static_cast<std::size_t>(samples_);
    if (to.size() != indices.size() * each) {
      throw InternalError(fmt::format("Npy: {} samples into {} values", indices.size(), to.size()));
    }
    for (std::size_t i = 0; i < indices.size(); ++i) {
      if (indices[i] < 0 || indices[i] >= samples_) {
        throw InternalError(fmt::format("Npy: sample {} of {}", indices[i], samples_));
      }
      std::copy_n(from.data() + static_cast<std::size_t>(indices[i]) * each, each, to.data() + i * each);
    }
  }

  std::int64_t samples_;
  std::vector<std::int64_t> sample_shape_;
  std::vector<std::int64_t> target_shape_;
  std::vector<float> inputs_;
  std::vector<float> targets_;
  Digest digest_;
};

}  // namespace

std::shared_ptr<const Dataset> load_npy(FileSystem& files, const std::filesystem::path& directory,
                                        Split split) {
  const std::string name = split == Split::train ? "train" : "test";
  Hasher hasher;
  Array inputs = read_npy(files, directory / (name + "_inputs.npy"), hasher);
  Array targets = read_npy(files, directory / (name + "_targets.npy"), hasher);
  if (inputs.shape.front() != targets.shape.front()) {
    throw DataError(
        fmt::format("'{}' has {} samples in {}_inputs.npy and {} in {}_targets.npy; give a target to each",
                    directory.string(), inputs.shape.front(), name, targets.shape.front(), name));
  }
  return std::make_shared<Npy>(std::move(inputs), std::move(targets), hasher.digest());
}

}  // namespace lockstep
