#include "train_options.hpp"

#include <cmath>
#include <limits>
#include <sstream>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/retention.hpp>

#include "usage.hpp"

namespace lockstep {
namespace {

namespace po = boost::program_options;

constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();

/// Options of the design that this version does not have: refused by name, not accepted and ignored.
const std::vector<std::string_view> kNotYet = {};

template <class T>
void check_range(std::string_view option, T value, T least, T most = std::numeric_limits<T>::max()) {
  if (value >= least && value <= most) return;
  const bool open = most == std::numeric_limits<T>::max();
  throw UsageError(
      fmt::format("--{} {} is out of range; give {}", option, value,
                  open ? fmt::format("at least {}", least) : fmt::format("{} to {}", least, most)));
}

}  // namespace

void check_data_dir(const std::string& dataset, const std::string& data_dir) {
  if (dataset == "fashion-mnist" || !data_dir.empty()) return;
  throw UsageError(fmt::format("--dataset {} needs --data_dir, {}", dataset,
                               dataset == "idx"       ? "the directory of the four IDX files"
                               : dataset == "cifar10" ? "the directory of the binary version's files"
                               : dataset == "npy"     ? "the directory of the four .npy files"
                                                      : "a file, or a directory of files"));
}

namespace {

void check(const TrainOptions& o) {
  check_word("dataset", o.dataset, {"fashion-mnist", "idx", "cifar10", "text", "npy"}, {"hdf5"});
  check_range<std::int64_t>("context", o.context, 1, 1 << 24);
  check_word("model", o.network.model, {"mlp", "lenet", "resnet", "unet", "gpt"});
  const bool fits = o.dataset == "text"  ? o.network.model == "gpt"
                    : o.dataset == "npy" ? o.network.model == "unet" || o.network.model == "mlp"
                                         : o.network.model != "gpt" && o.network.model != "unet";
  if (!fits) {
    throw UsageError(fmt::format(
        "--model {} cannot learn from --dataset {}; text is for gpt, npy for unet and mlp, images "
        "for mlp, lenet and resnet",
        o.network.model, o.dataset));
  }
  check_word("loss", o.network.loss, {"mse", "l1", "huber", "bce"});
  check_model(o.network);
  check_word("optimizer", o.optimizer,
             {"sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "lars", "lamb"});
  check_word("schedule", o.schedule,
             {"constant", "step", "cosine", "polynomial", "exponential", "one-cycle"});
  check_word("scale_learning_rate", o.scale_learning_rate, {"none", "linear", "sqrt"});
  check_word("reduction", o.reduction, {"canonical", "mpi"});
  check_word("gradient_dtype", o.gradient_dtype, {"f32", "bf16"});
  check_word("kernels", o.kernels, {"auto", "onednn", "eigen"});
  check_word("precision", o.precision, {"f32", "bf16"});
  check_word("on_save_failure", o.on_save_failure, {"continue", "stop"});
  check_data_dir(o.dataset, o.data_dir);
  if (!(o.learning_rate >= 0) || !std::isfinite(o.learning_rate)) {
    throw UsageError(
        fmt::format("--learning_rate {} is out of range; give a number of at least 0", o.learning_rate));
  }
  if (!(o.momentum >= 0 && o.momentum < 1)) {
    throw UsageError(
        fmt::format("--momentum {} is out of range; give a number from 0 to below 1", o.momentum));
  }
  const auto amount = [](std::string_view name, double value) {
    if (!(value >= 0) || !std::isfinite(value)) {
      throw UsageError(fmt::format("--{} {} is out of range; give a number of at least 0", name, value));
    }
  };
  amount("weight_decay", o.weight_decay);
  amount("clip_norm", o.clip_norm);
  amount("clip_value", o.clip_value);
  amount("end_learning_rate", o.end_learning_rate);
  if (!(o.decay_factor > 0 && o.decay_factor <= 1)) {
    throw UsageError(
        fmt::format("--decay_factor {} is out of range; give a number above 0, up to 1", o.decay_factor));
  }
  if (!(o.decay_power > 0) || !std::isfinite(o.decay_power)) {
    throw UsageError(fmt::format("--decay_power {} is out of range; give a number above 0", o.decay_power));
  }
  check_range<std::int64_t>("schedule_steps", o.schedule_steps, 0);
  if (o.schedule_steps == 0 && (o.schedule == "step" || o.schedule == "exponential")) {
    throw UsageError(fmt::format(
        "--schedule {} needs --schedule_steps N, the steps after which the rate is --decay_factor times what "
        "it was",
        o.schedule));
  }
  check_range<std::int64_t>("base_batch", o.base_batch, 1, 1 << 30);
  check_range<std::int64_t>("warmup_steps", o.warmup_steps, 0);
  check_range<std::int64_t>("global_batch", o.global_batch, 1, 1 << 30);
  check_range<std::int64_t>("micro_batch", o.micro_batch, 0, 1 << 30);
  if (o.last_step && o.epochs) throw UsageError("--last_step and --epochs are both given; give one of them");
  if (!o.last_step && !o.epochs) throw UsageError("say how long to train: give --last_step N or --epochs E");
  if (o.last_step) check_range<std::int64_t>("last_step", *o.last_step, 0);
  if (o.epochs) check_range<std::int64_t>("epochs", *o.epochs, 0, 1 << 30);
  const auto interval = [](std::string_view name, double value) {
    if (!(value >= 0) || !std::isfinite(value)) {
      throw UsageError(
          fmt::format("--{} {} is out of range; give seconds above 0, or 0 for off", name, value));
    }
  };
  interval("save_checkpoint_secs", o.save_checkpoint_secs);
  interval("save_summaries_secs", o.save_summaries_secs);
  interval("hang_limit_secs", o.hang_limit_secs);
  interval("max_wait_secs", o.max_wait_secs);
  interval("stop_grace_period_secs", o.stop_grace_period_secs);
  interval("max_run_secs", o.max_run_secs);
  interval("time_margin_secs", o.time_margin_secs);
  interval("keep_checkpoint_every_n_hours", o.keep_checkpoint_every_n_hours);
  check_range<std::int64_t>("save_checkpoint_steps", o.save_checkpoint_steps, 0, kHuge);
  check_range<std::int64_t>("save_summaries_steps", o.save_summaries_steps, 0, kHuge);
  check_range<std::int64_t>("log_step_count_steps", o.log_step_count_steps, 0, kHuge);
  check_range<std::int64_t>("profile_steps", o.profile_steps, 0, kHuge);
  interval("profile_secs", o.profile_secs);
  if ((o.profile_steps > 0 || o.profile_secs > 0) && profile_dir(o).empty()) {
    throw UsageError("--profile_steps and --profile_secs need a place for timelines; give --profile_dir");
  }
  if (o.report_parts && (o.profile_steps > 0 || o.profile_secs > 0)) {
    throw UsageError("--report_parts and timelines look at the same clock marks; give one of them");
  }
  check_range<std::int64_t>("early_stopping_patience", o.early_stopping_patience, 0, kHuge);
  if (!(o.early_stopping_min_delta >= 0) || !std::isfinite(o.early_stopping_min_delta)) {
    throw UsageError(fmt::format("--early_stopping_min_delta {} is out of range; give a number of at least 0",
                                 o.early_stopping_min_delta));
  }
  check_range<std::int64_t>("max_to_keep", o.max_to_keep, 0);
  check_range<std::int64_t>("shard_bytes", o.shard_bytes, 1);
  check_range<std::int64_t>("prefetch", o.prefetch, 0, 64);
  check_range<std::int64_t>("threads", o.threads, 1, 4096);
  check_range<std::int64_t>("bucket_bytes", o.bucket_bytes, 0, std::int64_t{1} << 40);
  if (o.shard_optimizer && o.reduction == "mpi") {
    throw UsageError(
        "--shard_optimizer 1 needs --reduction canonical; with mpi every rank has the whole sum");
  }
  if (o.gradient_dtype == "bf16" && o.reduction == "mpi") {
    throw UsageError("--gradient_dtype bf16 needs --reduction canonical; MPI's sum has no error feedback");
  }
  check_range<std::int64_t>("ranks_per_node", o.ranks_per_node, 0);
  if (!is_plain_name(o.checkpoint_basename)) {
    throw UsageError(
        fmt::format("--checkpoint_basename '{}' is no plain name; use letters, digits, '.', '_', '-'",
                    o.checkpoint_basename));
  }
  if (o.fresh && !o.restore_from.empty()) {
    throw UsageError("--fresh and --restore_from are both given; a fresh run restores nothing");
  }
  if (!o.keep_best.empty()) parse_keep_best(o.keep_best);
  if (o.init_from.empty() != o.init_tensors.empty()) {
    throw UsageError("--init_from and --init_tensors go together: a checkpoint, and what to take from it");
  }
  if (o.import_from.empty() && !o.import_tensors.empty()) {
    throw UsageError("--import_tensors says what to take from a file; give it with --import");
  }
  if (o.checkpoint_dir.empty() && (o.fresh || !o.restore_from.empty())) {
    throw UsageError("--fresh and --restore_from speak of checkpoints; give --checkpoint_dir too");
  }
}

}  // namespace

std::string profile_dir(const TrainOptions& options) {
  if (!options.profile_dir.empty()) return options.profile_dir;
  return options.summary_dir.empty() ? options.checkpoint_dir : options.summary_dir;
}

namespace {

/// "bias,norm"; "none" is no word.
std::vector<std::string> parse_words(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream parts(text == "none" ? "" : text);
  std::string part;
  while (std::getline(parts, part, ',')) {
    if (!part.empty()) words.push_back(part);
  }
  return words;
}

}  // namespace

void check_word(std::string_view option, const std::string& word, const std::vector<std::string_view>& known,
                const std::vector<std::string_view>& not_yet) {
  for (const auto& k : known) {
    if (word == k) return;
  }
  for (const auto& k : not_yet) {
    if (word == k) {
      throw UsageError(fmt::format("--{} {} is not in this version ({}); use {}", option, word,
                                   version_text(), fmt::join(known, ", ")));
    }
  }
  throw UsageError(fmt::format("--{} '{}' is unknown; use {}", option, word, fmt::join(known, ", ")));
}

ParsedTrainOptions parse_train_options(int argc, const char* const* argv) {
  ParsedTrainOptions parsed;
  TrainOptions& o = parsed.options;
  std::string hidden = "512,512";
  std::string no_decay = fmt::format("{}", fmt::join(o.no_decay, ","));
  std::vector<std::string> allow_change;
  std::vector<std::string> init_tensors;
  std::vector<std::string> import_tensors;
  std::int64_t last_step = 0;
  std::int64_t epochs = 0;

  po::options_description what("What to train");
  what.add_options()("dataset", po::value(&o.dataset)->default_value(o.dataset),
                     "fashion-mnist (Debian's package), idx (the four MNIST files, plain or .gz), cifar10 "
                     "(binary files), text or npy (train_ and test_ inputs.npy and targets.npy: values to "
                     "predict)")("data_dir", po::value(&o.data_dir), "where the data set lies")(
      "model", po::value(&o.network.model)->default_value(o.network.model),
      "mlp, lenet, resnet, unet or gpt")("hidden", po::value(&hidden)->default_value(hidden),
                                         "mlp: widths of the hidden layers; none for no hidden layer")(
      "depth", po::value(&o.network.depth)->default_value(o.network.depth), "resnet: 20, 32, 56...")(
      "levels", po::value(&o.network.levels)->default_value(o.network.levels),
      "unet: each has half the height and width of the one above")(
      "channels", po::value(&o.network.channels)->default_value(o.network.channels),
      "unet: of the first level; twice as many in each below")(
      "loss", po::value(&o.network.loss)->default_value(o.network.loss),
      "npy: mse, l1, huber or bce (binary cross-entropy)")(
      "label_smoothing", po::value(&o.network.label_smoothing)->default_value(o.network.label_smoothing, "0"),
      "the share of a label that is spread over all classes")(
      "layers", po::value(&o.network.layers)->default_value(o.network.layers), "gpt: blocks")(
      "width", po::value(&o.network.width)->default_value(o.network.width), "gpt: features of a position")(
      "heads", po::value(&o.network.heads)->default_value(o.network.heads), "gpt: heads of the attention")(
      "dropout", po::value(&o.network.dropout)->default_value(o.network.dropout, "0"),
      "mlp, lenet, gpt: the share of features that is left out in training")(
      "context", po::value(&o.context)->default_value(o.context), "text: bytes of a sample")(
      "optimizer", po::value(&o.optimizer)->default_value(o.optimizer),
      "sgd, momentum, nesterov, adam, adamw, rmsprop, adagrad, lars or lamb")(
      "learning_rate", po::value(&o.learning_rate)->default_value(o.learning_rate, "0.1"), "step size")(
      "momentum", po::value(&o.momentum)->default_value(o.momentum, "0.9"), "of momentum, nesterov and lars")(
      "weight_decay", po::value(&o.weight_decay)->default_value(o.weight_decay, "0"),
      "take rate times this off the weights in each step, apart from the gradient; adamw: 0.01 unless given")(
      "no_decay", po::value(&no_decay)->default_value(no_decay),
      "parameters with one of these words in their name do not decay; none for all do")(
      "clip_norm", po::value(&o.clip_norm)->default_value(o.clip_norm, "0"),
      "scale gradients so that their norm is at most this; 0: off")(
      "clip_value", po::value(&o.clip_value)->default_value(o.clip_value, "0"),
      "cut every element of the gradient to at most this size; 0: off")(
      "schedule", po::value(&o.schedule)->default_value(o.schedule),
      "of the learning rate: constant, step, cosine, polynomial, exponential or one-cycle")(
      "schedule_steps", po::value(&o.schedule_steps)->default_value(0),
      "steps to the schedule's end (0: last_step); step, exponential: steps between two decays")(
      "decay_factor", po::value(&o.decay_factor)->default_value(o.decay_factor, "0.1"),
      "of step and exponential")("decay_power", po::value(&o.decay_power)->default_value(o.decay_power, "1"),
                                 "of polynomial; 1 is a straight line")(
      "end_learning_rate", po::value(&o.end_learning_rate)->default_value(o.end_learning_rate, "0"),
      "of cosine and polynomial")("scale_learning_rate",
                                  po::value(&o.scale_learning_rate)->default_value(o.scale_learning_rate),
                                  "none, linear or sqrt: the rate was found with a batch of base_batch")(
      "base_batch", po::value(&o.base_batch)->default_value(o.base_batch), "see scale_learning_rate")(
      "warmup_steps", po::value(&o.warmup_steps)->default_value(0),
      "let the learning rate grow over so many steps")(
      "global_batch", po::value(&o.global_batch)->default_value(o.global_batch),
      "samples a step, over all ranks")("micro_batch", po::value(&o.micro_batch)->default_value(0),
                                        "samples computed at once; divides global_batch. Decides the bits "
                                        "and how many ranks are of use. 0: the largest divisor up to 32")(
      "seed", po::value(&o.seed)->default_value(o.seed), "of initial values and shuffling")(
      "last_step", po::value(&last_step), "train until the global step is N")(
      "epochs", po::value(&epochs), "or until every sample was seen E times")(
      "early_stopping_patience", po::value(&o.early_stopping_patience)->default_value(0),
      "stop when the loss has not fallen for so many steps; 0: off")(
      "early_stopping_min_delta", po::value(&o.early_stopping_min_delta)->default_value(0),
      "a loss that is smaller by no more than this has not fallen");
  po::options_description keep(
      "Checkpoints and summaries (intervals of 0 are off; with both, whichever comes first)");
  keep.add_options()("checkpoint_dir", po::value(&o.checkpoint_dir),
                     "save here, and go on from the newest checkpoint found here")(
      "checkpoint_basename", po::value(&o.checkpoint_basename)->default_value(o.checkpoint_basename),
      "what the names of checkpoints begin with")(
      "save_checkpoint_secs", po::value(&o.save_checkpoint_secs)->default_value(o.save_checkpoint_secs), "")(
      "save_checkpoint_steps", po::value(&o.save_checkpoint_steps)->default_value(0), "")(
      "max_to_keep", po::value(&o.max_to_keep)->default_value(o.max_to_keep), "checkpoints; 0: all")(
      "shard_bytes", po::value(&o.shard_bytes)->default_value(o.shard_bytes),
      "checkpoints with more are written by several ranks at once, as shards and a manifest")(
      "keep_checkpoint_every_n_hours", po::value(&o.keep_checkpoint_every_n_hours)->default_value(0),
      "beside these")("keep_best", po::value(&o.keep_best),
                      "METRIC:K, such as loss:3: the K best stay, too; name:K:max where high is good")(
      "key_file", po::value(&o.key_file),
      "sign checkpoints with this secret (16 bytes or more, mode 0600; the chief alone reads it), and go on "
      "only from what was signed "
      "with it")("init_from", po::value(&o.init_from),
                 "a new run starts with values of this checkpoint file, those that init_tensors names")(
      "init_tensors", po::value(&init_tensors),
      "such as /model/dense0/weight, or all of a folder: /model/dense0/; may be repeated")(
      "import", po::value(&o.import_from),
      "a new run starts with the values of this .safetensors file, in the names and layout of PyTorch or as "
      "lockstep-inspect exports them; everything in it must fit")(
      "import_tensors", po::value(&import_tensors),
      "take only these, such as /model/dense0/weight, /model/dense0/ or /model/dense0/weight=fc.weight; may "
      "be "
      "repeated")("restore_from", po::value(&o.restore_from),
                  "go on from this checkpoint of the directory, not the newest")(
      "fresh", po::bool_switch(&o.fresh), "set the directory's checkpoints aside and begin anew")(
      "allow_change", po::value(&allow_change),
      "a setting that may differ from the checkpoint's (learning_rate, schedule, precision, gradient_dtype); "
      "may be "
      "repeated")("steal", po::value(&o.steal), "take the directory from the living job with this id")(
      "on_save_failure", po::value(&o.on_save_failure)->default_value(o.on_save_failure), "continue or stop")(
      "summary_dir", po::value(&o.summary_dir), "event files for TensorBoard; default: checkpoint_dir")(
      "save_summaries_steps", po::value(&o.save_summaries_steps)->default_value(o.save_summaries_steps), "")(
      "save_summaries_secs", po::value(&o.save_summaries_secs)->default_value(0), "")(
      "log_step_count_steps", po::value(&o.log_step_count_steps)->default_value(o.log_step_count_steps), "")(
      "profile_steps", po::value(&o.profile_steps)->default_value(0),
      "write a timeline of all ranks (for Perfetto) every N steps")(
      "profile_secs", po::value(&o.profile_secs)->default_value(0), "")(
      "profile_dir", po::value(&o.profile_dir), "where timelines go; default: summary_dir or checkpoint_dir");
  po::options_description how("How to run");
  how.add_options()(
      "reduction", po::value(&o.reduction)->default_value(o.reduction),
      "canonical: same bits on any number of ranks; mpi: MPI_Iallreduce, same bits only on the same layout")(
      "kernels", po::value(&o.kernels)->default_value(o.kernels), "matrix library: auto, onednn or eigen")(
      "precision", po::value(&o.precision)->default_value(o.precision),
      "of what is multiplied in products and convolutions: f32, or bf16 (sums, parameters and all else stay "
      "f32; emulated, and slower, on a CPU without AVX512-BF16)")(
      "gradient_dtype", po::value(&o.gradient_dtype)->default_value(o.gradient_dtype),
      "f32, or bf16: half the bytes between nodes, rounded with error feedback; same bits only on the same "
      "nodes and ranks")(
      "shard_optimizer", po::value(&o.shard_optimizer)->default_value(false, "0"),
      "1: each rank of every node keeps and updates its own part of the optimizer's slots")(
      "second_copy", po::value(&o.second_copy)->default_value(false, "0"),
      "1: copy parameters and slots before each update, so that no work is lost when a rank is, under an MPI "
      "that "
      "survives it; twice the memory")(
      "bucket_bytes", po::value(&o.bucket_bytes)->default_value(0),
      "of what is sent at once between nodes; 0: measured at the start. Changes no bit")(
      "threads", po::value(&o.threads)->default_value(o.threads),
      "of a rank, each on micro-batches of its own; the same bits with any number")(
      "prefetch", po::value(&o.prefetch)->default_value(o.prefetch),
      "batches made ahead on a thread; 0: made when needed")(
      "hang_limit_secs", po::value(&o.hang_limit_secs)->default_value(o.hang_limit_secs),
      "end the job when a rank is missing for so long; 0: never")(
      "max_wait_secs", po::value(&o.max_wait_secs)->default_value(o.max_wait_secs),
      "how long ranks wait for the chief to restore")(
      "stop_grace_period_secs", po::value(&o.stop_grace_period_secs)->default_value(o.stop_grace_period_secs),
      "how long hooks and threads may take to end after a signal")(
      "max_run_secs", po::value(&o.max_run_secs)->default_value(0),
      "save and stop (exit code 75) before the run is this old; 0: off. Under Slurm also before the "
      "allocation "
      "ends, where SLURM_JOB_END_TIME says when")(
      "time_margin_secs", po::value(&o.time_margin_secs)->default_value(o.time_margin_secs),
      "to spare then, beside what two saves and two steps take")("report", po::value(&o.report),
                                                                 "write results here as JSON")(
      "report_parts", po::value(&o.report_parts)->default_value(false, "0"),
      "1: also what the parts of a step take, and how long ranks wait for each other")(
      "log_file", po::value(&o.log_file), "the chief's messages, dated, beside the terminal")(
      "dry_run", po::bool_switch(&o.dry_run), "check everything and say what would be done; write nothing")(
      "config", po::value<std::string>(),
      "file of `name = value` lines with any of these; the command line wins")("help", "this text")(
      "version", "name and version");
  po::options_description hidden_options;
  hidden_options.add_options()("ranks_per_node", po::value(&o.ranks_per_node)->default_value(0),
                               "pretend that nodes are that small (tests)");
  po::options_description not_yet;
  for (const auto& name : kNotYet)
    not_yet.add_options()(std::string(name).c_str(), po::value<std::string>(), "");

  po::options_description shown;
  shown.add(what).add(keep).add(how);
  po::options_description all;
  all.add(shown).add(hidden_options).add(not_yet);
  const auto values = parse_options(argc, argv, all);
  if (values.count("help") != 0) {
    std::ostringstream text;
    text << "Trains a network on the ranks of an MPI job; the same bits on any number of them.\n\n"
            "  mpirun -n 2 lockstep-train --config apps/fashion_mnist.cfg\n"
            "  mpirun -n 4 lockstep-train --dataset fashion-mnist --hidden 256,128 --epochs 5 "
            "--checkpoint_dir runs/a\n\n"
            "Launch it again with the same checkpoint_dir, on any number of ranks, to go on where it "
            "stopped.\n\n"
         << shown
         << "\nExit codes: 0 done, 64 usage, 65 missing or damaged data or checkpoint, 70 an error inside,\n"
            "74 input/output, 75 stopped early with a good save (launch again), 78 the environment or the\n"
            "ranks disagree (directory in use, other model).\n";
    parsed.print = text.str();
    return parsed;
  }
  if (values.count("version") != 0) {
    parsed.print = version_text() + "\n";
    return parsed;
  }
  for (const auto& name : kNotYet) {
    if (values.count(std::string(name)) != 0) {
      throw UsageError(fmt::format("--{} is not in this version ({}); leave it out", name, version_text()));
    }
  }
  o.network.hidden = parse_hidden(hidden);
  o.no_decay = parse_words(no_decay);
  if (o.optimizer == "adamw" && values["weight_decay"].defaulted()) o.weight_decay = 0.01;
  if (values.count("last_step") != 0) o.last_step = last_step;
  if (values.count("epochs") != 0) o.epochs = epochs;
  o.init_tensors = init_tensors;
  o.import_tensors = import_tensors;
  o.allow_change.insert(allow_change.begin(), allow_change.end());
  check(o);
  return parsed;
}

}  // namespace lockstep
