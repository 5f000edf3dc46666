#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "models.hpp"

namespace lockstep {

/// What the command line and the configuration file of lockstep-train say.
struct TrainOptions {
  std::string dataset = "fashion-mnist";
  std::string data_dir;
  std::int64_t context = 128;
  ModelOptions network;
  std::string optimizer = "momentum";
  double learning_rate = 0.1;
  double momentum = 0.9;
  double weight_decay = 0;
  std::vector<std::string> no_decay = {"bias", "norm"};
  double clip_norm = 0;
  double clip_value = 0;
  std::string schedule = "constant";
  std::int64_t schedule_steps = 0;
  double decay_factor = 0.1;
  double decay_power = 1;
  double end_learning_rate = 0;
  std::string scale_learning_rate = "none";
  std::int64_t base_batch = 256;
  std::int64_t warmup_steps = 0;
  std::int64_t global_batch = 128;
  std::int64_t micro_batch = 0;
  std::uint64_t seed = 1;
  std::optional<std::int64_t> last_step;
  std::optional<std::int64_t> epochs;
  std::int64_t early_stopping_patience = 0;
  double early_stopping_min_delta = 0;

  std::string checkpoint_dir;
  std::string checkpoint_basename = "ckpt";
  double save_checkpoint_secs = 600;
  std::int64_t save_checkpoint_steps = 0;
  int max_to_keep = 5;
  std::int64_t shard_bytes = std::int64_t{1} << 30;
  double keep_checkpoint_every_n_hours = 0;
  std::string keep_best;
  std::string key_file;
  std::string init_from;
  std::vector<std::string> init_tensors;
  std::string import_from;
  std::vector<std::string> import_tensors;
  std::string summary_dir;
  std::int64_t save_summaries_steps = 100;
  double save_summaries_secs = 0;
  std::int64_t log_step_count_steps = 100;
  std::int64_t profile_steps = 0;
  double profile_secs = 0;
  std::string profile_dir;
  std::string restore_from;
  bool fresh = false;
  std::string steal;
  std::set<std::string> allow_change;
  std::string on_save_failure = "continue";

  std::string reduction = "canonical";
  bool shard_optimizer = false;
  bool second_copy = false;
  std::int64_t bucket_bytes = 0;
  std::string gradient_dtype = "f32";
  std::string kernels = "auto";
  std::string precision = "f32";
  int prefetch = 0;
  int threads = 1;
  double hang_limit_secs = 600;
  double max_wait_secs = 7200;
  double stop_grace_period_secs = 120;
  double max_run_secs = 0;
  double time_margin_secs = 10;
  int ranks_per_node = 0;
  std::string report;
  bool report_parts = false;
  std::string log_file;
  bool dry_run = false;
};

/// Either options, or a text to print instead of running (help, version).
struct ParsedTrainOptions {
  TrainOptions options;
  std::string print;
};

/// Where timelines go; empty when nothing says.
std::string profile_dir(const TrainOptions& options);

/// Throws UsageError where the data set needs a data_dir and has none.
void check_data_dir(const std::string& dataset, const std::string& data_dir);

/// Throws UsageError if `word`, given for `option`, is none of `known`; says so of words for later versions.
void check_word(std::string_view option, const std::string& word, const std::vector<std::string_view>& known,
                const std::vector<std::string_view>& not_yet = {});

/// Throws UsageError with what is wrong and what to write instead.
ParsedTrainOptions parse_train_options(int argc, const char* const* argv);

}  // namespace lockstep
