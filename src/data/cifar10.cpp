#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/cifar10.hpp>

namespace lockstep {
namespace {

constexpr std::size_t kPixels = 32 * 32;
constexpr std::size_t kChannels = 3;
constexpr std::size_t kRecord = 1 + kPixels * kChannels;
constexpr int kClasses = 10;
constexpr float kWhite = 255.0F;
constexpr std::uint64_t kLargest = std::uint64_t{1} << 32;

class Cifar10 final : public Dataset {
 public:
  explicit Cifar10(std::vector<std::byte> records) : records_(std::move(records)) {}

  std::int64_t size() const noexcept override { return static_cast<std::int64_t>(records_.size() / kRecord); }
  const std::vector<std::int64_t>& sample_shape() const noexcept override { return shape_; }
  int classes() const noexcept override { return kClasses; }
  Digest digest() const override { return digest_of(records_); }

  void fill(std::span<const std::int64_t> indices, std::span<float> inputs,
            std::span<std::int32_t> labels) const override {
    if (inputs.size() != indices.size() * kPixels * kChannels || labels.size() != indices.size()) {
      throw InternalError(fmt::format("Cifar10::fill of {} samples into {} inputs and {} labels",
                                      indices.size(), inputs.size(), labels.size()));
    }
    for (std::size_t i = 0; i < indices.size(); ++i) {
      if (indices[i] < 0 || indices[i] >= size()) {
        throw InternalError(fmt::format("Cifar10::fill: sample {} of {}", indices[i], size()));
      }
      const std::byte* record = records_.data() + static_cast<std::size_t>(indices[i]) * kRecord;
      labels[i] = std::to_integer<std::int32_t>(record[0]);
      float* to = inputs.data() + i * kPixels * kChannels;
      for (std::size_t channel = 0; channel < kChannels; ++channel) {
        const std::byte* plane = record + 1 + channel * kPixels;
        for (std::size_t p = 0; p < kPixels; ++p) {
          to[p * kChannels + channel] = static_cast<float>(std::to_integer<int>(plane[p])) / kWhite;
        }
      }
    }
  }

 private:
  std::vector<std::int64_t> shape_ = {32, 32, 3};
  std::vector<std::byte> records_;
};

}  // namespace

std::shared_ptr<const Dataset> load_cifar10(FileSystem& files, const std::filesystem::path& directory,
                                            Split split) {
  std::vector<std::string> names = {"test_batch.bin"};
  if (split == Split::train) {
    names.clear();
    for (int i = 1; i <= 5; ++i) names.push_back(fmt::format("data_batch_{}.bin", i));
  }
  std::vector<std::byte> records;
  for (const std::string& name : names) {
    std::unique_ptr<ReadableFile> file;
    try {
      file = files.open_file(directory / name);
    } catch (const FileError& error) {
      if (error.code() != ENOENT && error.code() != ENOTDIR) throw;
      throw DataError(
          fmt::format("data directory '{}' has no {}; name the directory that holds the files of "
                      "CIFAR-10's binary version with --data_dir",
                      directory.string(), name));
    }
    const std::vector<std::byte> content = read_all(*file, kLargest);
    const auto damaged = [&](const std::string& problem) {
      throw DataError(
          fmt::format("data file '{}': {}; fetch it again", (directory / name).string(), problem));
    };
    if (content.empty() || content.size() % kRecord != 0) {
      damaged(fmt::format("has {} bytes, not a multiple of {}", content.size(), kRecord));
    }
    for (std::size_t at = 0; at < content.size(); at += kRecord) {
      if (std::to_integer<int>(content[at]) >= kClasses) {
        damaged(fmt::format("record {} has label {} (labels are 0 to {})", at / kRecord,
                            std::to_integer<int>(content[at]), kClasses - 1));
      }
    }
    records.insert(records.end(), content.begin(), content.end());
  }
  return std::make_shared<Cifar10>(std::move(records));
}

}  // namespace lockstep
