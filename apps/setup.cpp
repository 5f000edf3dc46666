#include "setup.hpp"

#include <span>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/image_dataset.hpp>
#include <lockstep/nn/dense.hpp>

namespace lockstep {

std::filesystem::path data_directory(const TrainOptions& options, FileSystem& files) {
  if (!options.data_dir.empty()) return options.data_dir;
  return fashion_mnist_directory(files);
}

Sequential make_model(const std::string& model, const std::vector<std::int64_t>& hidden,
                      const std::vector<std::int64_t>& sample_shape, int classes) {
  if (model != "mlp") throw UsageError(fmt::format("model '{}' is unknown", model));
  Sequential network{sample_shape};
  for (const std::int64_t width : hidden) network.add(Dense{width, Activation::relu});
  network.add(Dense{classes});
  return network;
}

std::unique_ptr<Optimizer> make_optimizer(const TrainOptions& options) {
  if (options.optimizer == "sgd") return std::make_unique<Sgd>();
  if (options.optimizer == "adam") return std::make_unique<Adam>();
  return std::make_unique<Momentum>(static_cast<float>(options.momentum));
}

std::unique_ptr<Schedule> make_schedule(const TrainOptions& options) {
  std::unique_ptr<Schedule> schedule =
      std::make_unique<ConstantRate>(static_cast<float>(options.learning_rate));
  if (options.warmup_steps == 0) return schedule;
  return std::make_unique<WarmUp>(options.warmup_steps, std::move(schedule));
}

namespace {

std::unique_ptr<Directory> directory_of(const std::filesystem::path& file, FileSystem& files) {
  return files.create_directory(file.has_parent_path() ? file.parent_path() : std::filesystem::path("."));
}

}  // namespace

void probe_text(const std::string& path, FileSystem& files) {
  const std::filesystem::path file(path);
  const auto directory = directory_of(file, files);
  const std::string name = "." + file.filename().string() + ".probe";
  if (directory->exists(name)) directory->remove(name);  // left by a run that died here
  directory->create(name)->close();
  directory->remove(name);
}

void write_text(const std::string& path, const std::string& text, FileSystem& files) {
  const std::filesystem::path file(path);
  replace_file(*directory_of(file, files), file.filename().string(), std::as_bytes(std::span(text)));
}

std::string hidden_text(const std::vector<std::int64_t>& hidden) {
  return hidden.empty() ? "none" : fmt::format("{}", fmt::join(hidden, ","));
}

}  // namespace lockstep
