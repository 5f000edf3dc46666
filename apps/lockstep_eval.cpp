#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <lockstep/base/clock.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/data/image_dataset.hpp>
#include <lockstep/hooks/global_step_waiter.hpp>
#include <lockstep/nn/kernels.hpp>
#include <lockstep/train/evaluator.hpp>

#include "checkpoint_choice.hpp"
#include "evaluation_text.hpp"
#include "models.hpp"
#include "program.hpp"
#include "setup.hpp"
#include "slurm.hpp"
#include "train_options.hpp"
#include "usage.hpp"

namespace lockstep {
namespace {

namespace po = boost::program_options;

struct EvalOptions {
  TrainOptions data;  ///< of which the data set counts
  std::string checkpoint_dir;
  std::string checkpoint;
  std::string checkpoint_basename{kDefaultBasename};
  std::int64_t wait_for_step = 0;
  double max_wait_secs = 7200;
  std::string key_file;
  std::string split = "test";
  std::string kernels;  ///< empty: those of the checkpoint
  std::string report;
  double hang_limit_secs = 600;
};

/// The options, or a text to print instead.
std::pair<EvalOptions, std::string> parse(int argc, const char* const* argv) {
  EvalOptions o;
  po::options_description shown("Options");
  shown.add_options()("checkpoint_dir", po::value(&o.checkpoint_dir), "where the checkpoints are")(
      "checkpoint", po::value(&o.checkpoint), "base name of one; default: the newest that verifies")(
      "checkpoint_basename", po::value(&o.checkpoint_basename)->default_value(o.checkpoint_basename),
      "what the names of checkpoints begin with")(
      "wait_for_step", po::value(&o.wait_for_step)->default_value(0),
      "wait until the training has saved this step or a later one; 0: do not wait")(
      "max_wait_secs", po::value(&o.max_wait_secs)->default_value(o.max_wait_secs),
      "for how long; 0: no limit")("key_file", po::value(&o.key_file),
                                   "read only what was signed with this secret")(
      "dataset", po::value(&o.data.dataset)->default_value(o.data.dataset),
      "fashion-mnist (Debian's package), idx (the four MNIST files, plain or .gz), cifar10 (binary files), "
      "text or npy (test_inputs.npy and test_targets.npy)")("data_dir", po::value(&o.data.data_dir),
                                                            "where the data set lies")(
      "split", po::value(&o.split)->default_value(o.split), "test or train")(
      "kernels", po::value(&o.kernels), "matrix library: auto, onednn or eigen; default: as in training")(
      "report", po::value(&o.report), "write results here as JSON")(
      "hang_limit_secs", po::value(&o.hang_limit_secs)->default_value(o.hang_limit_secs),
      "end the job when a rank is missing for so long; 0: never")(
      "config", po::value<std::string>(),
      "file of `name = value` lines with any of these; the command line wins")("help", "this text")(
      "version", "name and version");
  const auto values = parse_options(argc, argv, shown);
  if (values.count("help") != 0) {
    std::ostringstream text;
    text << "Measures the network of a checkpoint on a data set, with all ranks of an MPI job.\n"
            "Only reads, so it may run beside the training that saves there.\n\n"
            "  mpirun -n 2 lockstep-eval --checkpoint_dir runs/fashion_mnist\n\n"
         << shown
         << "\nExit codes: 0 done, 64 usage, 65 missing or damaged data or checkpoint, 74 input/output,\n"
            "75 the step was not saved in time, 78 the checkpoint does not fit the data or this program.\n";
    return {o, text.str()};
  }
  if (values.count("version") != 0) return {o, version_text() + "\n"};
  check_word("dataset", o.data.dataset, {"fashion-mnist", "idx", "cifar10", "text", "npy"}, {"hdf5"});
  check_word("split", o.split, {"test", "train"});
  if (!o.kernels.empty()) check_word("kernels", o.kernels, {"auto", "onednn", "eigen"});
  if (o.checkpoint_dir.empty())
    throw UsageError("--checkpoint_dir is missing: the directory of the training");
  check_data_dir(o.data.dataset, o.data.data_dir);
  if (o.wait_for_step < 0) {
    throw UsageError(fmt::format("--wait_for_step {} is out of range; give at least 0", o.wait_for_step));
  }
  if (o.wait_for_step > 0 && !o.checkpoint.empty()) {
    throw UsageError("--checkpoint and --wait_for_step are both given; give one of them");
  }
  if (!(o.max_wait_secs >= 0)) {
    throw UsageError(fmt::format("--max_wait_secs {} is out of range; give at least 0", o.max_wait_secs));
  }
  if (!(o.hang_limit_secs >= 0)) {
    throw UsageError(fmt::format("--hang_limit_secs {} is out of range; give at least 0", o.hang_limit_secs));
  }
  return {o, ""};
}

/// What all ranks need to know of a checkpoint to build its network.
struct Recipe {
  std::string name;
  std::string model;
  std::string sizes;  ///< of the model
  std::string kernels;
  std::string precision;
  std::int64_t step = 0;
  std::string loss;          ///< empty: the data has labels
  std::int64_t classes = 0;  ///< 0: it has values
  std::int64_t micro_batch = 0;
  std::int64_t context = 1;  ///< of a text
};

CheckpointFile choose(const EvalOptions& options, FileSystem& files, const Log& log) {
  const auto directory = directory_or_null(files, options.checkpoint_dir);
  if (directory == nullptr) {
    throw DataError(fmt::format("checkpoint_dir '{}' is not a directory", options.checkpoint_dir));
  }
  const auto key = load_key(files, options.key_file);
  if (options.checkpoint.empty()) {
    return open_checkpoint(files, options.checkpoint_dir, log, key.get(), options.checkpoint_basename);
  }
  if (!is_plain_name(options.checkpoint)) {
    throw UsageError(
        fmt::format("--checkpoint '{}' is not the name of a file in checkpoint_dir", options.checkpoint));
  }
  if (!directory->exists(options.checkpoint)) {
    throw DataError(fmt::format("there is no '{}' in '{}'; lockstep-inspect lists what there is",
                                options.checkpoint, options.checkpoint_dir));
  }
  return {*directory, options.checkpoint, key.get()};
}

std::string required(const CheckpointFile& file, const std::string& key) {
  auto value = setting_of(file, key);
  if (value) return std::move(*value);
  throw EnvironmentError(fmt::format(
      "checkpoint {} has no setting '{}': it was not written by lockstep-train, so its network is not known",
      file.name(), key));
}

std::int64_t required_number(const CheckpointFile& file, const std::string& key) {
  constexpr std::int64_t kMost = 1 << 30;
  const std::string text = required(file, key);
  std::istringstream in(text);
  std::int64_t value = 0;
  if (in >> value && in.eof() && value >= 1 && value <= kMost) return value;
  throw EnvironmentError(fmt::format("checkpoint {}: setting '{}' is '{}', which is no number of use here",
                                     file.name(), key, text));
}

Recipe recipe_of(const CheckpointFile& file) {
  return {file.name(),
          required(file, "model"),
          required(file, size_setting(required(file, "model"))),
          required(file, "kernels"),
          required(file, "precision"),
          file.step(),
          setting_of(file, "loss").value_or(""),
          setting_of(file, "loss") ? 0 : required_number(file, "classes"),
          required_number(file, "micro_batch"),
          setting_of(file, "context") ? required_number(file, "context") : 1};
}

/// The chief's recipe on all ranks. Collective.
void share(const Communicator& comm, Recipe& recipe) {
  recipe.name = comm.broadcast_text(recipe.name);
  recipe.model = comm.broadcast_text(recipe.model);
  recipe.sizes = comm.broadcast_text(recipe.sizes);
  recipe.kernels = comm.broadcast_text(recipe.kernels);
  recipe.precision = comm.broadcast_text(recipe.precision);
  recipe.loss = comm.broadcast_text(recipe.loss);
  std::int64_t numbers[] = {recipe.step, recipe.classes, recipe.micro_batch, recipe.context};
  comm.broadcast_values(std::span(numbers));
  recipe.step = numbers[0];
  recipe.classes = numbers[1];
  recipe.micro_batch = numbers[2];
  recipe.context = numbers[3];
}

/// Values of parameters and buffers; optimizer slots stay in the file. Throws EnvironmentError with all
/// differences.
void read_parameters(const CheckpointFile& file, const State& state) {
  std::vector<std::string> differences;
  const auto kept = [](const Entry& entry) {
    return entry.path.starts_with("/model/") || entry.path.starts_with("/buffers/");
  };
  for (const Entry& wanted : state.entries()) {
    if (!kept(wanted)) continue;
    const Entry* stored = file.find(wanted.path);
    if (stored == nullptr) {
      differences.push_back(fmt::format("missing '{}' {}", wanted.path, to_string(wanted.shape)));
    } else if (stored->type != wanted.type || stored->shape != wanted.shape) {
      differences.push_back(fmt::format("'{}' is {} (this data set needs {})", wanted.path,
                                        to_string(stored->shape), to_string(wanted.shape)));
    } else {
      std::memcpy(wanted.data, stored->data, wanted.bytes());
    }
  }
  if (differences.empty()) return;
  throw EnvironmentError(
      fmt::format("checkpoint {} does not fit:\n  {}\ngive the data set that it was trained "
                  "on with --dataset and --data_dir",
                  file.name(), fmt::join(differences, "\n  ")));
}

void broadcast_floats(const Communicator& comm, std::span<float> values) {
  constexpr std::size_t kPiece = std::size_t{4} << 20;
  while (!values.empty()) {
    const auto piece = values.first(std::min(values.size(), kPiece));
    comm.broadcast_values(piece);
    values = values.subspan(piece.size());
  }
}

std::unique_ptr<Kernels> kernels_for(const EvalOptions& options, const Recipe& recipe, const Log& log) {
  const std::string word = !options.kernels.empty()               ? options.kernels
                           : recipe.kernels.starts_with("oneDNN") ? "onednn"
                                                                  : "eigen";
  const Precision precision = precision_choice(recipe.precision);
  std::unique_ptr<Kernels> kernels;
  try {
    kernels = make_kernels(kernel_choice(word), precision);
  } catch (const UsageError&) {
    if (!options.kernels.empty()) throw;
    kernels = make_kernels(KernelChoice::automatic, precision);
  }
  if (kernels->description() != recipe.kernels) {
    log.warn(
        fmt::format("the checkpoint was trained with kernels '{}', this evaluation uses '{}': the last bits "
                    "of the loss may differ",
                    recipe.kernels, kernels->description()));
  }
  return kernels;
}

struct Machine {
  PosixFileSystem files;
  ThreadExecutor executor;
  std::shared_ptr<SystemClock> clock = std::make_shared<SystemClock>();
  Seconds started = clock->now();
};

ExitCode evaluate_checkpoint(const Communicator& world, const EvalOptions& options, Machine& machine) {
  const Log log = world.is_chief() ? Log::standard("") : Log();
  const Communicator comm = world.with_policy({.clock = machine.clock,
                                               .log = Log::standard(""),
                                               .notice = Seconds{5},
                                               .limit = Seconds{options.hang_limit_secs}});
  wait_for_global_step(comm, machine.files, options.checkpoint_dir,
                       {.wait_until_step = options.wait_for_step,
                        .limit_secs = options.max_wait_secs,
                        .basename = options.checkpoint_basename});
  std::optional<CheckpointFile> file;
  Recipe recipe;
  on_chief(comm, "the chief to read the checkpoint", [&] {
    file = choose(options, machine.files, log);
    recipe = recipe_of(*file);
  });
  share(comm, recipe);
  std::shared_ptr<const Dataset> dataset;
  std::exception_ptr failure;
  try {
    dataset =
        load_dataset({options.data.dataset, options.data.data_dir, recipe.context}, machine.files,
                     options.split == "train" ? Split::train : Split::test,
                     recipe.classes > 0 ? std::optional(static_cast<int>(recipe.classes)) : std::nullopt);
  } catch (...) {
    failure = std::current_exception();
  }
  throw_together(comm, failure);

  const auto kernels = kernels_for(options, recipe, log);
  ModelOptions network = model_options(recipe.model, recipe.sizes);
  if ((dataset->target_elements() > 0) != !recipe.loss.empty()) {
    throw EnvironmentError(fmt::format("checkpoint {} was trained on {}, not what this data set has",
                                       recipe.name, recipe.loss.empty() ? "labels" : "values"));
  }
  if (!recipe.loss.empty()) network.loss = recipe.loss;
  Sequential model = make_model(network, *dataset);
  State state;
  model.declare(state);
  PlainAllocator allocator;
  state.freeze(allocator);
  on_chief(comm, "the chief to read the parameters", [&] { read_parameters(*file, state); });
  file.reset();
  broadcast_floats(comm, state.parameters());
  broadcast_floats(comm, state.buffers());
  log.info(fmt::format("{} (step {}): {}, {} parameters, {} ranks", recipe.name, recipe.step, recipe.model,
                       state.parameter_count(), comm.size()));

  const Evaluation result = evaluate(comm, model, *kernels, *dataset, recipe.micro_batch);
  on_chief(comm, "the chief to write its report", [&] {
    std::puts((options.split + " " + evaluation_text(result)).c_str());
    if (options.report.empty()) return;
    nlohmann::json report = {{"checkpoint", recipe.name},
                             {"global_step", recipe.step},
                             {"split", options.split},
                             {"samples", result.samples},
                             {"parameters_digest", state.parameters_digest().hex()},
                             {"ranks", comm.size()},
                             {"kernels", kernels->description()},
                             {"precision", recipe.precision},
                             {"seconds", (machine.clock->now() - machine.started).count()},
                             {"version", version_text()}};
    for (const auto& [name, value] : evaluation_values(result)) report[name] = value;
    write_text(options.report, report.dump(2) + "\n", machine.files);
  });
  return ExitCode::done;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  using namespace lockstep;
  Machine machine;
  std::pair<EvalOptions, std::string> parsed;
  std::exception_ptr misuse;
  try {
    refuse_untold_tasks();
    parsed = parse(argc, argv);
  } catch (...) {
    misuse = std::current_exception();  // told once MPI says which rank this is
  }
  if (const auto code = refused_before_mpi(misuse)) return *code;
  const CallWatch watch =
      watch_calls(machine.executor, parsed.first.hang_limit_secs, parsed.first.max_wait_secs);
  const Environment environment(&argc, &argv);
  const Communicator world = environment.world().with_policy(
      {.log = Log::standard(""), .limit = Seconds{parsed.first.hang_limit_secs}});
  return run_program(world, misuse, parsed.second,
                     [&] { return evaluate_checkpoint(world, parsed.first, machine); });
}
