#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/text.hpp>

namespace lockstep {
namespace {

constexpr int kTokens = 256;
constexpr std::uint64_t kLargest = std::uint64_t{1} << 36;

class Text final : public Dataset {
 public:
  Text(std::vector<std::byte> bytes, std::int64_t context)
      : shape_{context}, context_(static_cast<std::size_t>(context)), bytes_(std::move(bytes)) {}

  std::int64_t size() const noexcept override {
    return static_cast<std::int64_t>((bytes_.size() - 1) / context_);
  }
  const std::vector<std::int64_t>& sample_shape() const noexcept override { return shape_; }
  int classes() const noexcept override { return kTokens; }
  std::int64_t labels_per_sample() const noexcept override { return shape_.front(); }
  Digest digest() const override { return digest_of(bytes_); }

  void fill(std::span<const std::int64_t> indices, std::span<float> inputs,
            std::span<std::int32_t> labels) const override {
    if (inputs.size() != indices.size() * context_ || labels.size() != inputs.size()) {
      throw InternalError(fmt::format("Text::fill of {} samples into {} inputs and {} labels", indices.size(),
                                      inputs.size(), labels.size()));
    }
    for (std::size_t i = 0; i < indices.size(); ++i) {
      if (indices[i] < 0 || indices[i] >= size()) {
        throw InternalError(fmt::format("Text::fill: sample {} of {}", indices[i], size()));
      }
      const std::byte* from = bytes_.data() + static_cast<std::size_t>(indices[i]) * context_;
      for (std::size_t p = 0; p < context_; ++p) {
        inputs[i * context_ + p] = static_cast<float>(std::to_integer<int>(from[p]));
        labels[i * context_ + p] = std::to_integer<std::int32_t>(from[p + 1]);
      }
    }
  }

 private:
  std::vector<std::int64_t> shape_;
  std::size_t context_;
  std::vector<std::byte> bytes_;
};

std::vector<std::byte> read_text(FileSystem& files, const std::filesystem::path& path) {
  std::unique_ptr<Directory> directory;
  try {
    directory = files.open_directory(path);
  } catch (const FileError& error) {
    if (error.code() != ENOTDIR && error.code() != ENOENT) throw;
  }
  std::vector<std::byte> bytes;
  const auto take = [&](ReadableFile& file) {
    const std::vector<std::byte> content = read_all(file, kLargest);
    bytes.insert(bytes.end(), content.begin(), content.end());
  };
  if (directory == nullptr) {
    try {
      take(*files.open_file(path));
    } catch (const FileError& error) {
      if (error.code() != ENOENT) throw;
      throw DataError(fmt::format(
          "there is no text at '{}'; name a file, or a directory of files, with --data_dir", path.string()));
    }
    return bytes;
  }
  std::vector<std::string> names;
  for (const DirectoryEntry& entry : directory->list()) {
    if (entry.is_regular) names.push_back(entry.name);
  }
  std::ranges::sort(names);
  for (const std::string& name : names) take(*directory->open(name));
  return bytes;
}

}  // namespace

std::shared_ptr<const Dataset> load_text(FileSystem& files, const std::filesystem::path& path,
                                         std::int64_t context, Split split) {
  if (context < 1) throw UsageError(fmt::format("a text needs a context of at least 1 (got {})", context));
  std::vector<std::byte> bytes = read_text(files, path);
  const std::size_t cut = bytes.size() - bytes.size() / 10;
  if (split == Split::train) {
    bytes.resize(cut);
  } else {
    bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(cut));
  }
  if (bytes.size() < static_cast<std::size_t>(context) + 1) {
    throw DataError(
        fmt::format("the {} split of the text at '{}' has {} bytes, too few for a context of {}; "
                    "give more text, or a smaller context",
                    split == Split::train ? "training" : "test", path.string(), bytes.size(), context));
  }
  return std::make_shared<Text>(std::move(bytes), context);
}

}  // namespace lockstep
