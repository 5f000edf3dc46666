#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/image_dataset.hpp>

#include "memory_files.hpp"

using namespace lockstep;
using namespace lockstep::testing;

namespace {

const Bytes kImages = make_idx({3, 2, 2}, {0, 51, 102, 153, 204, 255, 1, 2, 3, 4, 5, 6});
const Bytes kLabels = make_idx({3}, {2, 0, 1});

MemoryFiles files_of(const Bytes& images, const Bytes& labels) {
  MemoryFiles files;
  files.files["d/train-images-idx3-ubyte"] = images;
  files.files["d/train-labels-idx1-ubyte"] = labels;
  return files;
}

std::string error_of(const Bytes& images, const Bytes& labels, std::optional<int> classes = std::nullopt) {
  MemoryFiles files = files_of(images, labels);
  try {
    load_idx_dataset(files, "d", Split::train, classes);
  } catch (const DataError& error) {
    return error.what();
  }
  return {};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("samples are filled in the order asked for, with pixels scaled to [0, 1]") {
  MemoryFiles files = files_of(kImages, gzip(kLabels));
  const auto dataset = load_idx_dataset(files, "d", Split::train);
  CHECK(dataset->size() == 3);
  CHECK(dataset->classes() == 3);
  CHECK(dataset->sample_shape() == std::vector<std::int64_t>{2, 2});
  CHECK(dataset->sample_elements() == 4);

  const std::vector<std::int64_t> indices{1, 0, 1};
  std::vector<float> inputs(12);
  std::vector<std::int32_t> labels(3);
  dataset->fill(indices, inputs, labels);
  CHECK(labels == std::vector<std::int32_t>{0, 2, 0});
  CHECK(inputs == std::vector<float>{204 / 255.0F, 1, 1 / 255.0F, 2 / 255.0F, 0, 51 / 255.0F, 102 / 255.0F,
                                     153 / 255.0F, 204 / 255.0F, 1, 1 / 255.0F, 2 / 255.0F});
}

TEST_CASE("an index out of range and spans of another size are refused") {
  MemoryFiles files = files_of(kImages, kLabels);
  const auto dataset = load_idx_dataset(files, "d", Split::train);
  std::vector<float> inputs(4);
  std::vector<std::int32_t> labels(1);
  for (const std::int64_t index : {std::int64_t{-1}, std::int64_t{3}, std::int64_t{1} << 40}) {
    CHECK_THROWS_AS(dataset->fill({&index, 1}, inputs, labels), InternalError);
  }
  const std::int64_t good = 0;
  CHECK_THROWS_AS(dataset->fill({&good, 1}, std::span(inputs).first(3), labels), InternalError);
  CHECK_THROWS_AS(dataset->fill({&good, 1}, inputs, std::span(labels).first(0)), InternalError);
}

TEST_CASE("the digest covers the content, not its compression") {
  MemoryFiles plain = files_of(kImages, kLabels);
  MemoryFiles packed;
  packed.files["d/train-images-idx3-ubyte.gz"] = gzip(kImages);
  packed.files["d/train-labels-idx1-ubyte.gz"] = gzip(kLabels, 0);
  const Digest digest = load_idx_dataset(plain, "d", Split::train)->digest();
  CHECK(load_idx_dataset(packed, "d", Split::train)->digest() == digest);
  for (const bool in_images : {true, false}) {
    MemoryFiles other = plain;
    other.files[in_images ? "d/train-images-idx3-ubyte" : "d/train-labels-idx1-ubyte"].back() ^= 1;
    CHECK(load_idx_dataset(other, "d", Split::train)->digest() != digest);
  }
}

TEST_CASE("the test split has file names of its own") {
  MemoryFiles files = files_of(kImages, kLabels);
  CHECK_THROWS_AS(load_idx_dataset(files, "d", Split::test), DataError);
  files.files["d/t10k-images-idx3-ubyte"] = make_idx({1, 2, 2}, {1, 2, 3, 4});
  files.files["d/t10k-labels-idx1-ubyte.gz"] = gzip(make_idx({1}, {0}));
  const auto dataset = load_idx_dataset(files, "d", Split::test, 3);
  CHECK(dataset->size() == 1);
  CHECK(dataset->classes() == 3);
}

TEST_CASE("labels that do not match the images are a DataError with both counts") {
  CHECK(contains(error_of(kImages, make_idx({2}, {0, 1})),
                 "holds 2 labels, 'd/train-images-idx3-ubyte' holds 3"));
  CHECK(contains(error_of(kImages, kImages), "has 3 dimensions (labels have one)"));
  CHECK(contains(error_of(kLabels, kLabels), "has one dimension"));
  CHECK(contains(error_of(make_idx({0, 2, 2}, {}), make_idx({0}, {})), "holds no images"));
}

TEST_CASE("a label out of range is a DataError that names the sample") {
  CHECK(error_of(kImages, kLabels, 3).empty());
  CHECK(contains(error_of(kImages, kLabels, 2), "sample 0 has label 2 (there are 2 classes, labels 0 to 1)"));
}

TEST_CASE("a missing file is a DataError that says where it was looked for") {
  MemoryFiles files = files_of(kImages, kLabels);
  files.files.erase("d/train-labels-idx1-ubyte");
  CHECK_THROWS_WITH_AS(
      load_idx_dataset(files, "d", Split::train),
      "data directory 'd' has neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte.gz; name "
      "the directory that holds the four files of an MNIST-like dataset with --data_dir",
      DataError);
}

TEST_CASE("a compressed pair that ends early is a DataError, at whatever length of either file") {
  const Bytes images = gzip(kImages);
  const Bytes labels = gzip(kLabels);
  for (std::size_t length = 0; length < images.size(); ++length) {
    CAPTURE(length);
    CHECK_FALSE(
        error_of({images.begin(), images.begin() + static_cast<std::ptrdiff_t>(length)}, labels).empty());
  }
  for (std::size_t length = 0; length < labels.size(); ++length) {
    CAPTURE(length);
    CHECK_FALSE(
        error_of(images, {labels.begin(), labels.begin() + static_cast<std::ptrdiff_t>(length)}).empty());
  }
}

TEST_CASE("one reader can fill storage over which others make their dataset") {
  MemoryFiles files = files_of(gzip(kImages), kLabels);
  const IdxImages source(files, "d", Split::train);
  const auto storage = std::make_shared<Bytes>(source.stored_bytes());
  source.read(*storage);
  const IdxImages other(files, "d", Split::train);
  const auto dataset = other.dataset(*storage, storage);
  CHECK(dataset->digest() == load_idx_dataset(files, "d", Split::train)->digest());
  Bytes wrong(source.stored_bytes() - 1);
  CHECK_THROWS_AS(source.read(wrong), InternalError);
}

TEST_CASE("loading in the background gives the same dataset, or throws the same error when it is asked for") {
  ThreadExecutor threads;
  MemoryFiles files = files_of(gzip(kImages), kLabels);
  BackgroundLoad good(threads.start("load"), files, "d", Split::train);
  CHECK(good.get()->digest() == load_idx_dataset(files, "d", Split::train)->digest());
  CHECK(good.get() == good.get());
  BackgroundLoad bad(threads.start("load"), files, "elsewhere", Split::train);
  CHECK_THROWS_AS(bad.get(), DataError);
  CHECK_THROWS_AS(bad.get(), DataError);
}

TEST_CASE("a missing Fashion-MNIST is a DataError that names Debian's package") {
  MemoryFiles files;
  std::string message;
  try {
    fashion_mnist_directory(files);
  } catch (const DataError& error) {
    message = error.what();
  }
  CHECK(contains(message, "apt-get install dataset-fashion-mnist"));
}

TEST_CASE("Debian's Fashion-MNIST has 60,000 and 10,000 images of ten classes") {
  PosixFileSystem files;
  std::filesystem::path directory;
  try {
    directory = fashion_mnist_directory(files);
  } catch (const DataError&) {
    MESSAGE("skipped: the package dataset-fashion-mnist is not installed");
    return;
  }
  const auto train = load_idx_dataset(files, directory, Split::train);
  CHECK(train->size() == 60000);
  CHECK(train->classes() == 10);
  CHECK(train->sample_shape() == std::vector<std::int64_t>{28, 28});
  CHECK(load_idx_dataset(files, directory, Split::test)->size() == 10000);
}
