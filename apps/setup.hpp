#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include <lockstep/base/files.hpp>
#include <lockstep/data/image_dataset.hpp>
#include <lockstep/nn/optimizer.hpp>
#include <lockstep/nn/schedule.hpp>
#include <lockstep/train/update.hpp>

#include "train_options.hpp"

namespace lockstep {

/// What one split of a data set is read from.
struct DataChoice {
  std::string dataset;
  std::string data_dir;
  std::int64_t context = 128;
};

/// Reads one split. Images may have at most `classes` classes, if given. Throws DataError when the data is
/// not there or damaged. Local.
std::shared_ptr<const Dataset> load_dataset(const DataChoice& choice, FileSystem& files, Split split,
                                            std::optional<int> classes = std::nullopt);

/// Looks whether the test split is there, so that it is not missed only after hours of training. Throws as
/// load_dataset. Local.
void probe_test_data(const DataChoice& choice, FileSystem& files);

std::unique_ptr<Optimizer> make_optimizer(const TrainOptions& options);
UpdateOptions update_options(const TrainOptions& options);

/// `last_step` is where the run ends, and schedules with it unless the options say otherwise.
std::unique_ptr<Schedule> make_schedule(const TrainOptions& options, std::int64_t last_step);

/// The schedule without the rate itself, for the settings of a checkpoint.
std::string schedule_text(const TrainOptions& options, std::int64_t last_step);

/// Finds out whether `write_text` will be able to write there, and leaves nothing behind but the directory.
/// Throws FileError. Local.
void probe_text(const std::string& path, FileSystem& files);

/// Replaces the file at `path`, whose directory is made as needed. Throws FileError. Local.
void write_text(const std::string& path, const std::string& text, FileSystem& files);

}  // namespace lockstep
