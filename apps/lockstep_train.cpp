#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <lockstep/base/installed_memory.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/base/peak_memory.hpp>
#include <lockstep/base/signals.hpp>
#include <lockstep/checkpoint/restore.hpp>
#include <lockstep/data/image_dataset.hpp>
#include <lockstep/hooks/early_stopping.hpp>
#include <lockstep/hooks/nan_tensor.hpp>
#include <lockstep/hooks/profiler.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/nn/matrix_peak.hpp>
#include <lockstep/session/keepsake.hpp>
#include <lockstep/session/monitored_training_session.hpp>
#include <lockstep/train/evaluator.hpp>
#include <lockstep/train/trainer.hpp>

#include "checkpoint_choice.hpp"
#include "evaluation_text.hpp"
#include "models.hpp"
#include "parts_hook.hpp"
#include "placement.hpp"
#include "program.hpp"
#include "progress_hook.hpp"
#include "setup.hpp"
#include "slurm.hpp"
#include "tensor_import.hpp"
#include "train_options.hpp"
#include "usage.hpp"

namespace lockstep {
namespace {

/// What the program stands on; made before MPI is started.
struct Machine {
  std::shared_ptr<PosixFileSystem> files = std::make_shared<PosixFileSystem>();
  std::shared_ptr<SystemClock> clock = std::make_shared<SystemClock>();
  std::shared_ptr<ThreadExecutor> executor = std::make_shared<ThreadExecutor>();
  // From the start: a signal that comes while ranks meet or data is read stops the run at its first step.
  std::shared_ptr<ProcessSignals> signals = std::make_shared<ProcessSignals>(ProcessSignals::stop_signals());
  Seconds started = clock->now();
  std::shared_ptr<Keepsake> keepsake;      ///< where MPI survives the loss of a rank
  std::shared_ptr<const Dataset> dataset;  ///< once it was read
  bool begun = false;  ///< a session has found its first values: whoever begins again goes on from there
};

/// The training data, being read while MPI starts, once the kernels are made.
struct DataLoad {
  std::unique_ptr<BackgroundLoad> train;
  std::exception_ptr failure;
};

DataChoice data_choice(const TrainOptions& options) {
  return {options.dataset, options.data_dir, options.context};
}

DataLoad start_loading(const TrainOptions& options, Machine& machine) {
  DataLoad load;
  try {
    std::unique_ptr<Worker> worker = machine.executor->start("load data");
    // One after the other: together they would take the cores from the start of MPI itself.
    worker->post([choice = kernel_choice(options.kernels), precision = precision_choice(options.precision)] {
      warm_up(*make_kernels(choice, precision));
    });
    load.train = std::make_unique<BackgroundLoad>(std::move(worker),
                                                  [choice = data_choice(options), &files = *machine.files] {
                                                    return load_dataset(choice, files, Split::train);
                                                  });
  } catch (...) {
    load.failure = std::current_exception();
  }
  return load;
}

/// The training data on all ranks, or the error of any rank on all ranks. Also looks whether the
/// test data is there, so that it is not missed only after hours of training.
std::shared_ptr<const Dataset> finish_loading(const Communicator& world, const TrainOptions& options,
                                              Machine& machine, DataLoad& load) {
  std::exception_ptr failure = load.failure;
  if (!failure) {
    try {
      if (!machine.dataset) machine.dataset = load.train->get();
      probe_test_data(data_choice(options), *machine.files);
    } catch (...) {
      failure = std::current_exception();
    }
  }
  throw_together(world, failure);
  return machine.dataset;
}

void warn_of_idle_ranks(const Communicator& world, const Log& log, const BatchPlan& batch) {
  if (world.size() <= batch.micro_batches()) return;
  std::int64_t smaller = std::max<std::int64_t>(1, batch.global_batch / world.size());
  while (batch.global_batch % smaller != 0) --smaller;
  log.warn(fmt::format(
      "{} of {} ranks have nothing to do: {} micro-batches of {} keep {} ranks busy; start {} ranks{}",
      world.size() - batch.micro_batches(), world.size(), batch.micro_batches(), batch.micro_batch,
      batch.micro_batches(), batch.micro_batches(),
      batch.global_batch >= world.size()
          ? fmt::format(", or use --micro_batch {} (another micro_batch gives other bits)", smaller)
          : std::string()));
}

/// The same for the threads of ranks that have something to do.
void warn_of_idle_threads(const Communicator& world, const Log& log, const BatchPlan& batch, int threads) {
  const std::int64_t owned = (batch.micro_batches() + world.size() - 1) / world.size();
  if (threads <= owned) return;
  log.warn(
      fmt::format("{} of {} threads a rank have nothing to do: no rank has more than {} of the {} "
                  "micro-batches; use --threads {}, or a smaller micro_batch (another one gives other bits)",
                  threads - owned, threads, owned, batch.micro_batches(), owned));
}

/// Refuses what cannot be, before the machine chokes on it. Counts what one rank needs at least, so all hear
/// of the node that has least. Collective.
void check_memory(const Communicator& world, const TrainOptions& options, const Sequential& model,
                  const State& state, const BatchPlan& batch, const Dataset& dataset) {
  constexpr double kFloat = sizeof(float);
  const auto threads = static_cast<double>(options.threads);
  const std::size_t slots = options.shard_optimizer ? 0 : state.slot_names().size();
  const double of_node = static_cast<double>(state.parameter_elements()) * static_cast<double>(1 + slots);
  const auto gradients = static_cast<double>(state.gradient_elements());
  const double samples = std::floor(static_cast<double>(batch.global_batch) / world.size());
  double needed =
      kFloat * (of_node + gradients * threads + samples * static_cast<double>(dataset.sample_elements()));
  const auto installed = static_cast<double>(installed_memory());
  // Only then: in numbers that are not beyond all measure.
  if (needed <= installed) needed += threads * static_cast<double>(model.workspace_bytes(batch.micro_batch));
  std::exception_ptr failure;
  if (installed > 0 && needed > installed) {
    constexpr double kGibi = 1 << 30;
    failure = std::make_exception_ptr(UsageError(fmt::format(
        "a rank needs at least {:.1f} GiB for {} parameters, {} of {} samples a step and {} thread{}, and "
        "its machine has {:.1f} GiB; choose a smaller model, or a smaller global_batch or micro_batch",
        needed / kGibi, state.parameter_count(), samples, batch.global_batch, options.threads,
        options.threads == 1 ? "" : "s", installed / kGibi)));
  }
  throw_together(world, failure);
}

/// Settings that a resumed run must share with its checkpoint.
void declare_settings(State& state, const TrainOptions& options, const BatchPlan& batch,
                      const Sequential& model, const Optimizer& optimizer, const Kernels& kernels,
                      const Dataset& dataset, std::int64_t last_step) {
  state.setting("model", options.network.model);
  state.setting(size_setting(options.network.model), size_text(options.network));
  std::string layers = model.describe();
  while (!layers.empty() && layers.back() == '\n') layers.pop_back();
  for (std::size_t at = 0; (at = layers.find('\n', at)) != std::string::npos;) layers.replace(at, 1, "; ");
  state.setting("layers", layers);
  state.setting("optimizer", optimizer.describe());
  state.setting("learning_rate", fmt::format("{}", static_cast<float>(options.learning_rate)));
  state.setting("schedule", schedule_text(options, last_step));
  state.setting("weight_decay", fmt::format("{}", options.weight_decay));
  state.setting("no_decay",
                options.no_decay.empty() ? "none" : fmt::format("{}", fmt::join(options.no_decay, ",")));
  state.setting("clip_norm", fmt::format("{}", options.clip_norm));
  state.setting("clip_value", fmt::format("{}", options.clip_value));
  state.setting("seed", std::to_string(options.seed));
  state.setting("global_batch", std::to_string(batch.global_batch));
  state.setting("micro_batch", std::to_string(batch.micro_batch));
  state.setting("precision", options.precision);
  if (options.gradient_dtype != "f32") state.setting("gradient_dtype", options.gradient_dtype);
  state.setting("kernels", kernels.description());
  state.setting("instruction_set", kernels.instruction_set());
  state.setting("data_digest", dataset.digest().hex());
  state.setting("data_samples", std::to_string(dataset.size()));
  if (options.dataset == "text") state.setting("context", std::to_string(options.context));
  if (dataset.classes() > 0) state.setting("classes", std::to_string(dataset.classes()));
  if (dataset.target_elements() > 0) state.setting("loss", options.network.loss);
}

MonitoredTrainingSessionOptions make_session_options(const TrainOptions& options, const Machine& machine,
                                                     const BatchPlan& batch, std::int64_t last_step,
                                                     const Log& log) {
  MonitoredTrainingSessionOptions session;
  session.checkpoint_dir = options.checkpoint_dir;
  session.scaffold.saver.basename = options.checkpoint_basename;
  session.scaffold.saver.max_to_keep = options.max_to_keep;
  session.scaffold.saver.shard_bytes = static_cast<std::uint64_t>(options.shard_bytes);
  session.scaffold.saver.keep_checkpoint_every_n_hours = options.keep_checkpoint_every_n_hours;
  if (!options.keep_best.empty()) session.scaffold.saver.keep_best = parse_keep_best(options.keep_best);
  session.hooks = {std::make_shared<StopAtStepHook>(std::nullopt, last_step),
                   std::make_shared<NanTensorHook>()};
  if (options.early_stopping_patience > 0) {
    session.hooks.push_back(std::make_shared<EarlyStoppingHook>(EarlyStoppingHook::Options{
        .patience = options.early_stopping_patience, .min_delta = options.early_stopping_min_delta}));
  }
  if (options.profile_steps > 0 || options.profile_secs > 0) {
    ProfilerHook::Options profile{.output_dir = profile_dir(options), .files = machine.files};
    if (options.profile_steps > 0) profile.save_steps = options.profile_steps;
    if (options.profile_secs > 0) profile.save_secs = options.profile_secs;
    session.hooks.push_back(std::make_shared<ProfilerHook>(std::move(profile)));
  }
  session.save_checkpoint_secs = options.save_checkpoint_secs;
  session.save_checkpoint_steps = options.save_checkpoint_steps;
  session.save_summaries_steps = options.save_summaries_steps;
  session.save_summaries_secs = options.save_summaries_secs;
  session.log_step_count_steps = options.log_step_count_steps;
  session.max_wait_secs = options.max_wait_secs;
  session.stop_grace_period_secs = options.stop_grace_period_secs;
  session.summary_dir = options.summary_dir;
  SessionConfig& config = session.config;
  config.reduction = options.reduction == "mpi" ? ReductionKind::mpi : ReductionKind::canonical;
  config.micro_batches = batch.micro_batches();
  config.share_parameters = true;
  config.shard_optimizer = options.shard_optimizer;
  config.keepsake = machine.keepsake;
  config.bucket_bytes = static_cast<std::size_t>(options.bucket_bytes);
  config.gradient_dtype = options.gradient_dtype == "bf16" ? GradientDtype::bf16 : GradientDtype::f32;
  config.ranks_per_node = options.ranks_per_node;
  config.max_run_secs = options.max_run_secs;
  config.end_time = allocation_end();
  config.time_margin_secs = options.time_margin_secs;
  config.stop_on_save_failure = options.on_save_failure == "stop";
  config.fresh = options.fresh;
  config.restore_from = options.restore_from;
  config.allow_change = options.allow_change;
  config.allow_change.insert("instruction_set");  // another CPU may give other bits from here on: warned of
  config.steal = options.steal;
  config.identity = fmt::format("version = {}\nlast_step = {}", version_text(), last_step);
  config.files = machine.files;
  config.clock = machine.clock;
  config.executor = machine.executor;
  config.signals = machine.signals;
  config.log = log;
  return session;
}

struct Timing {
  double first_step_seconds = 0;
  double samples_per_second = 0;
  double counted_seconds = 0;  ///< over which these were counted
};

/// What the bits of a run depend on, beside promise P1.
std::string_view same_bits(const TrainOptions& options) {
  const bool rounded = options.gradient_dtype == "bf16";
  return rounded || options.reduction == "mpi" ? "on the same layout of ranks and nodes" : "on any ranks";
}

/// Leaves a report of a run that failed, in place of that of an earlier one.
class FailureReportHook final : public SessionRunHook {
 public:
  FailureReportHook(std::string path, FileSystem& files) : path_(std::move(path)), files_(files) {}
  std::string_view name() const override { return "failure_report"; }
  void after_create_session(RunContext&) override { begun_ = true; }
  void on_error(RunContext& context, const std::exception& error) override {
    if (!begun_) return;  // a run that is refused leaves the report of the one that is there
    const nlohmann::json report = {{"state", "failed"},
                                   {"global_step", context.global_step()},
                                   {"ranks", context.ranks()},
                                   {"stop_reason", error.what()},
                                   {"stop_by", "an error"},
                                   {"stop_step", context.global_step()},
                                   {"exit_code", static_cast<int>(exit_code_of(error))},
                                   {"version", version_text()}};
    try {
      write_text(path_, report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n", files_);
    } catch (const Error& problem) {
      context.log().error(problem.what());
    }
  }

 private:
  std::string path_;
  FileSystem& files_;
  bool begun_ = false;
};

nlohmann::json make_report(const MonitoredTrainingSession& session, const TrainOptions& options,
                           const Communicator& world, const State& state, const BatchPlan& batch,
                           const Kernels& kernels, std::optional<double> loss,
                           const std::optional<Evaluation>& evaluation, const Timing& timing,
                           double seconds) {
  const auto or_null = [](const auto& value) {
    return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
  };
  nlohmann::json report = {
      {"state", session.stopped_early() ? "stopped" : "done"},
      {"global_step", session.global_step()},
      {"ranks", world.size()},
      {"nodes", session.topology().nodes},
      {"threads", options.threads},
      {"global_batch", batch.global_batch},
      {"micro_batch", batch.micro_batch},
      {"loss", or_null(loss)},
      {"parameters", state.parameter_count()},
      {"parameters_digest", state.parameters_digest().hex()},
      {"buffers_digest", content_digest(state.entries(), "/buffers/").hex()},
      {"samples_per_second", timing.samples_per_second},
      {"seconds", seconds},
      {"first_step_seconds", timing.first_step_seconds},
      {"restored_from",
       session.restored_from().empty() ? nlohmann::json(nullptr) : nlohmann::json(session.restored_from())},
      {"stop_reason", session.stop_reason()},
      {"stop_by", session.stop_cause().by},
      {"stop_rank", session.stop_cause().rank == StopCause::kAll ? nlohmann::json(nullptr)
                                                                 : nlohmann::json(session.stop_cause().rank)},
      {"stop_step", session.stop_cause().step},
      {"reduction", session.reducer().name()},
      {"kernels", kernels.description()},
      {"precision", options.precision},
      {"precision_emulated", kernels.precision() == Precision::emulated_bf16},
      {"gradient_arenas", session.reducer().gradient_arenas()},
      {"gradient_bytes", session.reducer().bytes()},
      {"gradient_dtype", options.gradient_dtype},
      {"shard_optimizer", options.shard_optimizer},
      {"same_bits", same_bits(options)},
      {"version", version_text()}};
  for (const auto& [name, value] : evaluation_values(evaluation)) {
    report["test_" + name] = std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(nullptr);
  }
  return report;
}

/// How much of what the cores can do was used; nulls for runs too short to tell.
nlohmann::json speed_report(const Communicator& world, const TrainOptions& options, const Sequential& model,
                            const Kernels& kernels, Clock& clock, const Timing& timing) {
  constexpr double kLongEnough = 1;  // seconds
  nlohmann::json report = {{"flops_per_sample", model.flops_per_sample()},
                           {"flops_per_second", nullptr},
                           {"matrix_peak_flops_per_second", nullptr},
                           {"share_of_matrix_peak", nullptr}};
  if (timing.counted_seconds < kLongEnough) return report;
  const double achieved = timing.samples_per_second * static_cast<double>(model.flops_per_sample());
  const double peak = matrix_peak(kernels, clock);  // of one thread
  report["flops_per_second"] = achieved;
  report["matrix_peak_flops_per_second"] = peak;
  report["share_of_matrix_peak"] = achieved / (peak * world.size() * options.threads);
  return report;
}

/// Seconds a step: of the chief's phases, how long the chief waited for the others to come (in `reduce`), and
/// how long the mean rank and the one that waited least did, over the last steps; and how long that one did
/// which came last in each step.
nlohmann::json parts_report(const PartsHook& parts, const std::vector<WaitSummary>& waits) {
  nlohmann::json report = {{"steps", parts.steps()}, {"seconds", parts.means()}};
  double sum = 0;
  double least = std::numeric_limits<double>::infinity();
  for (const WaitSummary& wait : waits) {
    sum += wait.mean;
    least = std::min(least, wait.mean);
  }
  report["wait_chief"] = waits.front().mean;
  report["wait_mean"] = sum / static_cast<double>(waits.size());
  report["wait_least"] = least;
  report["wait_last"] = parts.wait_of_last();
  return report;
}

ExitCode train(const Communicator& world, const TrainOptions& options, Machine& machine, DataLoad& load) {
  Log log;
  on_chief(world, "the chief to open its log", [&] { log = Log::standard("", options.log_file); });
  const Communicator comm = world.with_policy({.clock = machine.clock,
                                               .log = Log::standard(""),
                                               .notice = Seconds{5},
                                               .limit = Seconds{options.hang_limit_secs}});

  const BatchPlan batch = batch_plan(options.global_batch, options.micro_batch);
  const auto kernels = make_kernels(kernel_choice(options.kernels), precision_choice(options.precision));
  const auto optimizer = make_optimizer(options);
  const auto dataset = finish_loading(comm, options, machine, load);
  Sequential model = make_model(options.network, *dataset);
  State state;
  model.declare(state);
  optimizer->declare(state);
  check_memory(comm, options, model, state, batch, *dataset);
  const std::int64_t last_step =
      options.last_step
          ? *options.last_step
          : Sampler(options.seed, dataset->size(), batch.global_batch).steps_for_epochs(*options.epochs);
  const auto schedule = make_schedule(options, last_step);
  declare_settings(state, options, batch, model, *optimizer, *kernels, *dataset, last_step);

  log.info(fmt::format("{}, {}, {} rank{}, {} thread{} a rank", version_text(), Environment::library(),
                       comm.size(), comm.size() == 1 ? "" : "s", options.threads,
                       options.threads == 1 ? "" : "s"));
  report_placement(comm, log, options.threads);
  warn_of_unused_tasks(comm, log);
  log.info(fmt::format("data: {} samples of {} {}", dataset->size(), to_string(dataset->sample_shape()),
                       dataset->classes() > 0 ? fmt::format("in {} classes", dataset->classes())
                                              : "with values of " + to_string(dataset->target_shape())));
  log.info(fmt::format("model: {}, {} parameters, {:.3g} Mflop a sample", options.network.model,
                       state.parameter_count(), static_cast<double>(model.flops_per_sample()) * 1e-6));
  log.info(fmt::format("steps: {} of {} samples in {} micro-batches of {}, {}, learning rate {}", last_step,
                       batch.global_batch, batch.micro_batches(), batch.micro_batch, optimizer->describe(),
                       schedule->describe()));
  if (options.weight_decay > 0 || options.clip_norm > 0 || options.clip_value > 0) {
    log.info(fmt::format("update: weight decay {} (not of {}), clip norm {}, clip value {} (0: off)",
                         options.weight_decay, fmt::join(options.no_decay, ", "), options.clip_norm,
                         options.clip_value));
  }
  log.info(fmt::format("kernels: {}, {}, {}", kernels->description(), kernels->instruction_set(),
                       options.precision == "f32" ? "f32" : "operands in bf16, sums in f32"));
  if (kernels->precision() == Precision::emulated_bf16) {
    log.warn("bf16 is emulated, since there is no AVX512-BF16 here: slower than --precision f32");
  }
  warn_of_idle_ranks(comm, log, batch);
  warn_of_idle_threads(comm, log, batch, options.threads);
  if (options.reduction == "mpi") {
    log.info("--reduction mpi: the bits depend on the number of ranks and where they run");
  }
  if (options.gradient_dtype == "bf16") {
    log.info(
        "--gradient_dtype bf16: on several nodes, the bits depend on how many they are and on the ranks of "
        "each");
  }
  if (!options.report.empty() && !options.dry_run) {
    // A report that cannot be written should be known now, not after hours.
    on_chief(comm, "the chief to try its report", [&] { probe_text(options.report, *machine.files); });
  }
  if (options.dry_run) {
    log.info("dry run: everything checked, nothing written");
    return ExitCode::done;
  }

  MonitoredTrainingSessionOptions session_options =
      make_session_options(options, machine, batch, last_step, log);
  std::shared_ptr<const MacKey> key;
  on_chief(comm, "the chief to read its key", [&] { key = load_key(*machine.files, options.key_file); });
  session_options.scaffold.saver.key = key;
  session_options.scaffold.init_fn = [&](State& fresh) {
    model.initialize(fresh, options.seed);
    if (!options.import_from.empty()) {
      import_tensors(*machine.files, options.import_from, options.import_tensors, fresh, log);
    }
    if (options.init_from.empty()) return;
    init_from_checkpoint(*machine.files, options.init_from, options.init_tensors, fresh, log, key.get());
  };
  if (comm.is_chief()) {
    session_options.chief_only_hooks = {std::make_shared<ProgressHook>(last_step, batch.global_batch)};
  }
  const auto parts = std::make_shared<PartsHook>();
  if (options.report_parts && comm.is_chief()) session_options.chief_only_hooks.push_back(parts);
  if (!options.report.empty() && comm.is_chief()) {
    session_options.chief_only_hooks.push_back(
        std::make_shared<FailureReportHook>(options.report, *machine.files));
  }
  if (machine.begun) {
    SessionConfig& config = session_options.config;
    config.fresh = false;
    config.restore_from.clear();
    // Ranks did not start at the same time, and settings must be the same on all.
    const auto gone = comm.all_gather((machine.clock->now() - machine.started).count());
    if (config.max_run_secs > 0) {
      config.max_run_secs = std::max(1e-3, config.max_run_secs - *std::ranges::max_element(gone));
    }
  }
  MonitoredTrainingSession session(comm, state, std::move(session_options));
  machine.begun = true;
  log.info(fmt::format("sums: {}", session.reducer().describe()));
  log.info(
      fmt::format("parameters{} once a node{}, same bits {}",
                  state.slot_names().empty() ? "" : fmt::format(" and {} slots", state.slot_names().size()),
                  options.shard_optimizer ? ", slots shared out over all ranks" : "", same_bits(options)));

  if (options.second_copy) {
    const std::size_t bytes = machine.keepsake ? machine.keepsake->second_copy_bytes() : 0;
    if (bytes == 0) {
      log.warn(machine.keepsake ? "--second_copy 1 keeps none with bf16 gradients between nodes"
                                : "--second_copy 1 keeps none: this MPI does not survive the loss of a rank");
    } else {
      log.info(fmt::format("a second copy of parameters and slots: {:.1f} MiB a node",
                           static_cast<double>(bytes) / (1 << 20)));
    }
  }

  std::optional<double> loss;
  Timing timing;
  Seconds after_first{0};
  const std::int64_t first_step = session.global_step();
  if (!session.should_stop()) {
    Trainer trainer({.model = model,
                     .optimizer = *optimizer,
                     .schedule = *schedule,
                     .kernels = *kernels,
                     .dataset = dataset,
                     .batch = batch,
                     .seed = options.seed,
                     .state = state,
                     .executor = *machine.executor,
                     .prefetch = options.prefetch,
                     .update = update_options(options),
                     .threads = options.threads},
                    session);
    const MonitoredTrainingSession::Step step = [&](StepContext& context) {
      const StepValues values = trainer.step(context);
      loss = values.find("loss");
      return values;
    };
    while (!session.should_stop()) {
      session.run(step);
      if (session.global_step() == first_step + 1) {
        after_first = machine.clock->now();
        timing.first_step_seconds = (after_first - machine.started).count();
      }
    }
  } else {
    log.info(fmt::format("the run is complete at step {}: {}", session.global_step(), session.stop_reason()));
  }
  const std::int64_t counted = session.global_step() - first_step - 1;
  if (counted > 0) {
    timing.counted_seconds = std::max((machine.clock->now() - after_first).count(), 1e-9);
    timing.samples_per_second = static_cast<double>(counted * batch.global_batch) / timing.counted_seconds;
  }
  std::vector<WaitSummary> waits;
  if (options.report_parts) waits = gather(comm, session.reducer().waits());
  session.close();

  std::optional<Evaluation> evaluation;
  if (!session.stopped_early()) {
    std::shared_ptr<const Dataset> test;
    std::exception_ptr failure;
    try {
      test = load_dataset(data_choice(options), *machine.files, Split::test, dataset->classes());
    } catch (...) {
      failure = std::current_exception();
    }
    throw_together(comm, failure);
    evaluation = evaluate(comm, model, *kernels, *test, batch.micro_batch);
    log.info("test " + evaluation_text(*evaluation));
  }
  if (timing.samples_per_second > 0) log.info(fmt::format("{:.0f} samples/s", timing.samples_per_second));
  const std::vector<std::int64_t> memory = comm.all_gather(peak_memory());
  on_chief(comm, "the chief to write its report", [&] {
    const double seconds = (machine.clock->now() - machine.started).count();
    log.info(fmt::format("parameters {}", state.parameters_digest().hex()));
    if (options.report.empty()) return;
    nlohmann::json report =
        make_report(session, options, comm, state, batch, *kernels, loss, evaluation, timing, seconds);
    report["second_copy_bytes"] =
        machine.keepsake ? machine.keepsake->second_copy_bytes() : 0;  // of the node
    report["peak_memory_bytes"] = *std::ranges::max_element(memory);   // of the rank that has most
    report.update(speed_report(comm, options, model, *kernels, *machine.clock, timing));
    if (options.report_parts) report["parts"] = parts_report(*parts, waits);
    write_text(options.report, report.dump(2) + "\n", *machine.files);
  });
  if (session.stopped_early()) log.info("stopped early: launch again with the same checkpoint_dir to go on");
  return session.stopped_early() ? ExitCode::try_again : ExitCode::done;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  using namespace lockstep;
  Machine machine;
  ParsedTrainOptions parsed;
  std::exception_ptr misuse;
  DataLoad load;
  try {
    refuse_untold_tasks();
    parsed = parse_train_options(argc, argv);
    if (parsed.print.empty()) load = start_loading(parsed.options, machine);
  } catch (...) {
    misuse = std::current_exception();  // told once MPI says which rank this is
  }
  if (const auto code = refused_before_mpi(misuse)) return *code;
  const CallWatch watch =
      watch_calls(*machine.executor, parsed.options.hang_limit_secs, parsed.options.max_wait_secs);
  const Environment environment(&argc, &argv);
  bool again = false;
  return run_program(environment, misuse, parsed.print, Seconds{parsed.options.hang_limit_secs},
                     [&](const Communicator& world) {
                       if (!machine.keepsake && Environment::survives_losses()) {
                         machine.keepsake = std::make_shared<Keepsake>(parsed.options.second_copy);
                       }
                       if (std::exchange(again, true)) {
                         machine.keepsake->settle(world);
                         const auto begun = world.all_gather(machine.begun ? 1 : 0);
                         machine.begun = std::ranges::find(begun, 1) != begun.end();
                       }
                       return train(world, parsed.options, machine, load);
                     });
}
