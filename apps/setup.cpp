#include "setup.hpp"

#include <algorithm>
#include <span>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/data/cifar10.hpp>
#include <lockstep/data/image_dataset.hpp>
#include <lockstep/data/npy.hpp>
#include <lockstep/data/text.hpp>

namespace lockstep {

namespace {

std::filesystem::path image_directory(const DataChoice& choice, FileSystem& files) {
  if (!choice.data_dir.empty()) return choice.data_dir;
  return fashion_mnist_directory(files);
}

}  // namespace

std::shared_ptr<const Dataset> load_dataset(const DataChoice& choice, FileSystem& files, Split split,
                                            std::optional<int> classes) {
  if (choice.dataset == "text") return load_text(files, choice.data_dir, choice.context, split);
  if (choice.dataset == "npy") return load_npy(files, choice.data_dir, split);
  if (choice.dataset == "cifar10") return load_cifar10(files, choice.data_dir, split);
  return load_idx_dataset(files, image_directory(choice, files), split, classes);
}

void probe_test_data(const DataChoice& choice, FileSystem& files) {
  if (choice.dataset != "fashion-mnist" && choice.dataset != "idx") {
    load_dataset(choice, files, Split::test);  // small, and read in a moment
    return;
  }
  const IdxImages headers(files, image_directory(choice, files), Split::test);
}

std::unique_ptr<Optimizer> make_optimizer(const TrainOptions& options) {
  const auto momentum = static_cast<float>(options.momentum);
  if (options.optimizer == "sgd") return std::make_unique<Sgd>();
  if (options.optimizer == "nesterov") return std::make_unique<Nesterov>(momentum);
  if (options.optimizer == "adam" || options.optimizer == "adamw") return std::make_unique<Adam>();
  if (options.optimizer == "rmsprop") return std::make_unique<RmsProp>();
  if (options.optimizer == "adagrad") return std::make_unique<Adagrad>();
  if (options.optimizer == "lars") return std::make_unique<Lars>(momentum);
  if (options.optimizer == "lamb") return std::make_unique<Lamb>();
  return std::make_unique<Momentum>(momentum);
}

UpdateOptions update_options(const TrainOptions& options) {
  return {.clip_norm = options.clip_norm,
          .clip_value = options.clip_value,
          .weight_decay = static_cast<float>(options.weight_decay),
          .no_decay = options.no_decay};
}

namespace {

std::int64_t schedule_steps(const TrainOptions& options, std::int64_t last_step) {
  // A run of no steps has a schedule, too.
  return options.schedule_steps > 0 ? options.schedule_steps : std::max<std::int64_t>(last_step, 1);
}

std::unique_ptr<Schedule> without_warm_up(const TrainOptions& options, std::int64_t last_step) {
  const BatchScaling scaling = options.scale_learning_rate == "linear" ? BatchScaling::linear
                               : options.scale_learning_rate == "sqrt" ? BatchScaling::square_root
                                                                       : BatchScaling::none;
  const float rate = scaled_rate(static_cast<float>(options.learning_rate), scaling, options.global_batch,
                                 options.base_batch);
  const std::int64_t steps = schedule_steps(options, last_step);
  const auto end = static_cast<float>(options.end_learning_rate);
  if (options.schedule == "step") return std::make_unique<StepDecay>(rate, steps, options.decay_factor);
  if (options.schedule == "exponential") {
    return std::make_unique<ExponentialDecay>(rate, steps, options.decay_factor);
  }
  if (options.schedule == "cosine") return std::make_unique<CosineDecay>(rate, steps, end);
  if (options.schedule == "polynomial") {
    return std::make_unique<PolynomialDecay>(rate, steps, options.decay_power, end);
  }
  if (options.schedule == "one-cycle") return std::make_unique<OneCycle>(rate, steps);
  return std::make_unique<ConstantRate>(rate);
}

}  // namespace

std::unique_ptr<Schedule> make_schedule(const TrainOptions& options, std::int64_t last_step) {
  auto schedule = without_warm_up(options, last_step);
  if (options.warmup_steps == 0) return schedule;
  return std::make_unique<WarmUp>(options.warmup_steps, std::move(schedule));
}

std::string schedule_text(const TrainOptions& options, std::int64_t last_step) {
  std::string text = options.schedule;
  if (text != "constant") text += fmt::format(" over {} steps", schedule_steps(options, last_step));
  if (text.starts_with("step") || text.starts_with("exponential")) {
    text += fmt::format(" times {}", options.decay_factor);
  }
  if (options.schedule == "polynomial") text += fmt::format(" power {}", options.decay_power);
  if (options.schedule == "polynomial" || options.schedule == "cosine") {
    text += fmt::format(" to {}", options.end_learning_rate);
  }
  if (options.scale_learning_rate != "none") {
    text += fmt::format(", {} from a batch of {}", options.scale_learning_rate, options.base_batch);
  }
  if (options.warmup_steps > 0) text += fmt::format(" after {} warm-up steps", options.warmup_steps);
  return text;
}

namespace {

std::unique_ptr<Directory> directory_of(const std::filesystem::path& file, FileSystem& files) {
  return files.create_directory(file.has_parent_path() ? file.parent_path() : std::filesystem::path("."));
}

/// Another run may write the same file now: tasks of a job array that share a configuration.
std::string name_of_our_own(const std::filesystem::path& file) {
  return fmt::format(".{}.tmp.{:016x}", file.filename().string(), SystemIdentity().nonce());
}

}  // namespace

void probe_text(const std::string& path, FileSystem& files) {
  const auto directory = directory_of(path, files);
  const std::string name = name_of_our_own(path);
  directory->create(name)->close();
  directory->remove(name);
}

void write_text(const std::string& path, const std::string& text, FileSystem& files) {
  const std::filesystem::path file(path);
  const auto directory = directory_of(file, files);
  const std::string temporary = name_of_our_own(file);
  auto written = directory->create(temporary);
  written->write(std::as_bytes(std::span(text)));
  written->sync();
  written->close();
  directory->replace(temporary, file.filename().string());
  directory->sync();
}

}  // namespace lockstep
