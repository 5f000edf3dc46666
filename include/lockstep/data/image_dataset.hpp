#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include <lockstep/base/executor.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/data/dataset.hpp>
#include <lockstep/data/idx.hpp>

namespace lockstep {

enum class Split { train, test };

/// An image file and a label file of the IDX format, opened and compared but not yet read: a dataset in the
/// making. Splitting the making in three lets one rank of a node read into memory that all of its ranks
/// share:
///
///   IdxImages source(files, directory, Split::train);   // every rank: reads the two headers
///   source.read(storage);                                // one rank: reads and inflates
///   auto dataset = source.dataset(storage, owner);       // every rank, after a barrier: checks the labels
///
/// All functions are local. Missing, damaged and mismatched files throw DataError.
class IdxImages {
 public:
  /// Looks in `directory` for {train,t10k}-images-idx3-ubyte and -labels-idx1-ubyte, plain or with ".gz".
  /// Where both forms exist, the plain one is taken.
  IdxImages(FileSystem& files, const std::filesystem::path& directory, Split split);

  IdxImages(FileSystem& files, const std::filesystem::path& images, const std::filesystem::path& labels);

  std::int64_t size() const noexcept { return images_.shape().front(); }
  std::size_t stored_bytes() const noexcept;

  /// Reads both files into `storage` of stored_bytes().
  void read(std::span<std::uint8_t> storage) const;

  /// The dataset over such a storage, which `owner` keeps alive. Labels must be below `classes`; without it,
  /// there are as many classes as the largest label says.
  std::shared_ptr<const Dataset> dataset(std::span<const std::uint8_t> storage,
                                         std::shared_ptr<const void> owner,
                                         std::optional<int> classes = std::nullopt) const;

 private:
  void check_pair() const;

  IdxFile images_;
  IdxFile labels_;
};

/// Grey images of one byte a pixel, with labels of one byte.
class ImageDataset final : public Dataset {
 public:
  /// `content` is what `digest` covers; all spans are kept alive by `owner`.
  ImageDataset(std::vector<std::int64_t> sample_shape, int classes, std::span<const std::uint8_t> images,
               std::span<const std::uint8_t> labels, std::span<const std::uint8_t> content,
               std::shared_ptr<const void> owner);

  std::int64_t size() const noexcept override { return static_cast<std::int64_t>(labels_.size()); }
  const std::vector<std::int64_t>& sample_shape() const noexcept override { return shape_; }
  int classes() const noexcept override { return classes_; }
  void fill(std::span<const std::int64_t> indices, std::span<float> inputs,
            std::span<std::int32_t> labels) const override;

  /// XXH3-128 of the inflated image file followed by the inflated label file.
  Digest digest() const override;

 private:
  std::vector<std::int64_t> shape_;
  int classes_;
  std::size_t elements_;
  std::span<const std::uint8_t> images_;
  std::span<const std::uint8_t> labels_;
  std::span<const std::uint8_t> content_;
  std::shared_ptr<const void> owner_;
  mutable std::once_flag digest_once_;
  mutable Digest digest_;
};

/// Opens, reads and checks one split in memory of its own. Local. Throws DataError.
std::shared_ptr<const Dataset> load_idx_dataset(FileSystem& files, const std::filesystem::path& directory,
                                                Split split, std::optional<int> classes = std::nullopt);

/// Loads a dataset beside the main thread: started before MPI is, reading the files costs the start of a
/// program almost nothing. Local.
class BackgroundLoad {
 public:
  using Load = std::function<std::shared_ptr<const Dataset>()>;

  /// On a worker of its own, which may have something else to do first. What `load` uses must outlive this.
  BackgroundLoad(std::unique_ptr<Worker> worker, Load load);

  /// load_idx_dataset. `files` must outlive this.
  BackgroundLoad(std::unique_ptr<Worker> worker, FileSystem& files, std::filesystem::path directory,
                 Split split, std::optional<int> classes = std::nullopt);

  /// Waits for the end and returns the dataset, or throws what loading threw. May be called again.
  std::shared_ptr<const Dataset> get();

 private:
  std::shared_ptr<const Dataset> dataset_;
  std::exception_ptr failure_;
  std::unique_ptr<Worker> worker_;  // last: it writes the above
};

/// Where Debian's package dataset-fashion-mnist puts the four files. Local. Throws DataError, naming the
/// package, when the directory is not there.
std::filesystem::path fashion_mnist_directory(FileSystem& files);

}  // namespace lockstep
