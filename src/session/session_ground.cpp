#include "session_ground.hpp"

#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/session/keepsake.hpp>

namespace lockstep {
namespace {

/// Parameters, buffers, slots and settings, as far as they were declared by now.
std::string layout_of(const State& state) {
  std::string layout = state.frozen() ? "frozen\n" : "not yet frozen\n";
  for (const Tensor& tensor : state.parameter_tensors()) {
    layout += fmt::format("parameter {} {}\n", tensor.name(), to_string(tensor.shape()));
  }
  for (const Tensor& tensor : state.buffer_tensors()) {
    layout += fmt::format("buffer {} {}\n", tensor.name(), to_string(tensor.shape()));
  }
  for (const std::string& slot : state.slot_names()) layout += fmt::format("slot {}\n", slot);
  for (const auto& [key, value] : state.settings()) layout += fmt::format("{} = {}\n", key, value);
  return layout;
}

std::string lines_of(const SessionCreatorOptions& options) {
  const SessionConfig& config = options.config;
  const SaverOptions& saver = options.scaffold.saver;
  return fmt::format(
      "checkpoint_dir = {}\nsummary_dir = {}\nmax_wait_secs = {}\nreduction = {}\nmicro_batches = {}\n"
      "share_parameters = {}\nshard_optimizer = {}\nbucket_bytes = {}\ngradient_dtype = {}\nranks_per_node = "
      "{}\nmax_run_secs = {}\ntime_margin_secs = {}\nstop_on_save_failure = {}\nfresh = {}\n"
      "restore_from = {}\nsteal = {}\nallow_change = {}\nmax_to_keep = {}\n"
      "keep_checkpoint_every_n_hours = {}\nkeep_best = {}\nverify_after_write = {}\nbasename = "
      "{}\nshard_bytes = {}\nmax_recoveries = {}\nkeepsake = {}\n{}",
      options.checkpoint_dir.string(), options.summary_dir.string(), options.max_wait_secs,
      static_cast<int>(config.reduction), config.micro_batches, config.share_parameters,
      config.shard_optimizer, config.bucket_bytes, static_cast<int>(config.gradient_dtype),
      config.ranks_per_node, config.max_run_secs, config.time_margin_secs, config.stop_on_save_failure,
      config.fresh, config.restore_from, config.steal, fmt::join(config.allow_change, ", "),
      saver.max_to_keep, saver.keep_checkpoint_every_n_hours,
      saver.keep_best ? fmt::format("{}:{}:{}", saver.keep_best->metric, saver.keep_best->count,
                                    saver.keep_best->highest ? "max" : "min")
                      : std::string(),
      saver.verify_after_write, saver.basename, saver.shard_bytes, config.max_recoveries,
      config.keepsake == nullptr       ? "none"
      : config.keepsake->second_copy() ? "with a second copy"
                                       : "without a second copy",
      config.identity);
}

}  // namespace

/// Waits of a program that gave its communicator no log are told where the session speaks.
Communicator speaking(Communicator comm, const Log& log) {
  if (comm.policy().log) return comm;
  WaitPolicy policy = comm.policy();
  policy.log = log;
  return comm.with_policy(std::move(policy));
}

Communicator patient(const Communicator& comm, double seconds) {
  WaitPolicy policy = comm.policy();
  policy.limit = Seconds(seconds >= 0 ? seconds : 0);
  return comm.with_policy(policy);
}

SessionGround::SessionGround(Communicator communicator, State& its_state, SessionCreatorOptions its_options)
    : comm(speaking(std::move(communicator), its_options.config.log)),
      start(patient(comm, its_options.max_wait_secs)),
      state(its_state),
      options(std::move(its_options)),
      config(options.config),
      log(comm.is_chief() ? config.log : Log()),
      started(config.clock->now()) {
  if (options.summary_dir.empty()) options.summary_dir = options.checkpoint_dir;
}

SessionGround::~SessionGround() {
  if (!kept) return;
  try {
    kept->let_go(state);
  } catch (const std::exception&) {
    // The next session goes on from a checkpoint.
  }
}

void SessionGround::meet() {
  if (met) return;
  start.barrier("all ranks to create the session");
  met = true;
}

void SessionGround::compare(std::vector<Statement> more) {
  more.push_back({"the model or its settings", layout_of(state)});
  more.push_back({"options", lines_of(options)});
  more.push_back({"the program", config.process->program()});
  compare_ranks(start, more);
}

void SessionGround::together(std::string_view phase, const std::function<void()>& work) {
  Failure failure;
  try {
    work();
  } catch (...) {
    failure = current_failure(std::string(phase), state.global_step());
  }
  agree(start, failure);
}

void SessionGround::on_chief(std::string_view what, std::string_view phase,
                             const std::function<void()>& work) {
  Failure failure;
  if (comm.is_chief()) {
    try {
      work();
    } catch (...) {
      failure = current_failure(std::string(phase), state.global_step());
    }
  }
  agree_with_chief(start, what, failure);
}

void SessionGround::part() const noexcept {
  if (!topology) return;
  topology->node.let_go();
  topology->column.let_go();
}

void SessionGround::write_status(const char* status, std::optional<ExitCode> code,
                                 const std::string& reason) const {
  if (directory) directory->write_status(status, code, reason, state.global_step());
}

}  // namespace lockstep
