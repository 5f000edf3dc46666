#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/image_dataset.hpp>

namespace lockstep {
namespace {

constexpr const char* kFashionMnist = "/usr/share/datasets/fashion-mnist";
constexpr float kWhite = 255.0F;
constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kAhead = 2;       // samples
constexpr std::size_t kFetched = 1024;  // bytes of a sample; the processor follows by itself from there

bool is_missing(const FileError& error) {
  return error.code() == ENOENT || error.code() == ENOTDIR;
}

IdxFile open_either(FileSystem& files, const std::filesystem::path& directory, const std::string& name) {
  for (const std::string& candidate : {name, name + ".gz"}) {
    try {
      files.open_file(directory / candidate);
    } catch (const FileError& error) {
      if (!is_missing(error)) throw;
      continue;
    }
    return IdxFile(files, directory / candidate);
  }
  throw DataError(fmt::format(
      "data directory '{}' has neither {} nor {}.gz; name the directory that holds the four files of an "
      "MNIST-like dataset with --data_dir",
      directory.string(), name, name));
}

std::string prefix(Split split) {
  return split == Split::train ? "train" : "t10k";
}

/// Uninitialized bytes, in huge pages where the system gives them: faulting in small pages takes as long as a
/// tenth of inflating.
std::shared_ptr<std::uint8_t> allocate(std::size_t bytes) {
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  void* memory = std::aligned_alloc(kHugePage, (bytes + kHugePage - 1) / kHugePage * kHugePage);
  if (memory == nullptr) throw std::bad_alloc();
  return {static_cast<std::uint8_t*>(memory), std::free};
}

}  // namespace

IdxImages::IdxImages(FileSystem& files, const std::filesystem::path& directory, Split split)
    : images_(open_either(files, directory, prefix(split) + "-images-idx3-ubyte")),
      labels_(open_either(files, directory, prefix(split) + "-labels-idx1-ubyte")) {
  check_pair();
}

IdxImages::IdxImages(FileSystem& files, const std::filesystem::path& images,
                     const std::filesystem::path& labels)
    : images_(files, images), labels_(files, labels) {
  check_pair();
}

void IdxImages::check_pair() const {
  const auto fail = [](const IdxFile& file, const std::string& problem) {
    throw DataError(fmt::format("data file '{}': {}; check that it is the file you meant",
                                file.path().string(), problem));
  };
  if (images_.shape().size() < 2) fail(images_, "has one dimension (images have at least two)");
  if (labels_.shape().size() != 1) {
    fail(labels_, fmt::format("has {} dimensions (labels have one)", labels_.shape().size()));
  }
  if (images_.elements() == 0) fail(images_, "holds no images");
  if (images_.shape()[0] != labels_.shape()[0]) {
    throw DataError(fmt::format(
        "labels do not match images: '{}' holds {} labels, '{}' holds {} images; take both from one dataset",
        labels_.path().string(), labels_.shape()[0], images_.path().string(), images_.shape()[0]));
  }
}

std::size_t IdxImages::stored_bytes() const noexcept {
  return static_cast<std::size_t>(images_.stored_bytes() + labels_.stored_bytes());
}

void IdxImages::read(std::span<std::uint8_t> storage) const {
  if (storage.size() != stored_bytes()) {
    throw InternalError(
        fmt::format("IdxImages::read into {} bytes instead of {}", storage.size(), stored_bytes()));
  }
  const auto image_bytes = static_cast<std::size_t>(images_.stored_bytes());
  images_.read(storage.first(image_bytes));
  labels_.read(storage.subspan(image_bytes));
}

std::shared_ptr<const Dataset> IdxImages::dataset(std::span<const std::uint8_t> storage,
                                                  std::shared_ptr<const void> owner,
                                                  std::optional<int> classes) const {
  if (storage.size() != stored_bytes()) {
    throw InternalError(
        fmt::format("IdxImages::dataset over {} bytes instead of {}", storage.size(), stored_bytes()));
  }
  const auto image_bytes = static_cast<std::size_t>(images_.stored_bytes());
  const auto images = images_.values(storage.first(image_bytes));
  const auto labels = labels_.values(storage.subspan(image_bytes));
  const auto largest = std::max_element(labels.begin(), labels.end());
  if (classes && *largest >= *classes) {
    throw DataError(
        fmt::format("data file '{}': sample {} has label {} (there are {} classes, labels 0 to {}); check "
                    "that the labels belong "
                    "to this dataset",
                    labels_.path().string(), largest - labels.begin(), *largest, *classes, *classes - 1));
  }
  return std::make_shared<ImageDataset>(
      std::vector<std::int64_t>(images_.shape().begin() + 1, images_.shape().end()),
      classes.value_or(*largest + 1), images, labels, storage, std::move(owner));
}

ImageDataset::ImageDataset(std::vector<std::int64_t> sample_shape, int classes,
                           std::span<const std::uint8_t> images, std::span<const std::uint8_t> labels,
                           std::span<const std::uint8_t> content, std::shared_ptr<const void> owner)
    : shape_(std::move(sample_shape)),
      classes_(classes),
      elements_(static_cast<std::size_t>(sample_elements())),
      images_(images),
      labels_(labels),
      content_(content),
      owner_(std::move(owner)) {
  if (images_.size() != elements_ * labels_.size()) {
    throw InternalError(fmt::format("ImageDataset: {} pixels for {} labels", images_.size(), labels_.size()));
  }
}

void ImageDataset::fill(std::span<const std::int64_t> indices, std::span<float> inputs,
                        std::span<std::int32_t> labels) const {
  if (inputs.size() != indices.size() * elements_ || labels.size() != indices.size()) {
    throw InternalError(fmt::format("ImageDataset::fill of {} samples into {} inputs and {} labels",
                                    indices.size(), inputs.size(), labels.size()));
  }
  for (const std::int64_t index : indices) {
    if (index < 0 || index >= size()) {
      throw InternalError(fmt::format("ImageDataset::fill: sample {} of {}", index, size()));
    }
  }
  for (std::size_t i = 0; i < indices.size(); ++i) {
    // Shuffled samples are far apart: fetch one while another is converted.
    if (i + kAhead < indices.size()) {
      const std::uint8_t* coming = images_.data() + static_cast<std::size_t>(indices[i + kAhead]) * elements_;
      for (std::size_t k = 0; k < std::min(elements_, kFetched); k += kCacheLine)
        __builtin_prefetch(coming + k);
    }
    const auto index = static_cast<std::size_t>(indices[i]);
    const std::uint8_t* pixels = images_.data() + index * elements_;
    float* target = inputs.data() + i * elements_;
    // A true division, so that the values are those of any other program that divides by 255.
    for (std::size_t k = 0; k < elements_; ++k) target[k] = static_cast<float>(pixels[k]) / kWhite;
    labels[i] = labels_[index];
  }
}

Digest ImageDataset::digest() const {
  std::call_once(digest_once_, [this] { digest_ = digest_of(std::as_bytes(content_)); });
  return digest_;
}

std::shared_ptr<const Dataset> load_idx_dataset(FileSystem& files, const std::filesystem::path& directory,
                                                Split split, std::optional<int> classes) {
  const IdxImages source(files, directory, split);
  const std::shared_ptr<std::uint8_t> storage = allocate(source.stored_bytes());
  source.read({storage.get(), source.stored_bytes()});
  return source.dataset({storage.get(), source.stored_bytes()}, storage, classes);
}

BackgroundLoad::BackgroundLoad(std::unique_ptr<Worker> worker, FileSystem& files,
                               std::filesystem::path directory, Split split, std::optional<int> classes)
    : BackgroundLoad(std::move(worker), [&files, directory = std::move(directory), split, classes] {
        return load_idx_dataset(files, directory, split, classes);
      }) {}

BackgroundLoad::BackgroundLoad(std::unique_ptr<Worker> worker, Load load) : worker_(std::move(worker)) {
  worker_->post([this, load = std::move(load)] {
    try {
      auto dataset = load();
      dataset->digest();  // computed here, it costs the main thread nothing when it asks
      dataset_ = std::move(dataset);
    } catch (...) {
      failure_ = std::current_exception();
    }
  });
}

std::shared_ptr<const Dataset> BackgroundLoad::get() {
  worker_->wait();
  if (failure_) std::rethrow_exception(failure_);
  return dataset_;
}

std::filesystem::path fashion_mnist_directory(FileSystem& files) {
  try {
    files.open_directory(kFashionMnist);
  } catch (const FileError& error) {
    if (!is_missing(error)) throw;
    throw DataError(
        fmt::format("Fashion-MNIST is not at '{}'; install Debian's package with 'apt-get install "
                    "dataset-fashion-mnist', or name a directory that holds the four files with "
                    "--data_dir",
                    kFashionMnist));
  }
  return kFashionMnist;
}

}  // namespace lockstep
