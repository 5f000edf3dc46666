#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <exception>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/lock.hpp>
#include <lockstep/checkpoint/probe.hpp>
#include <lockstep/checkpoint/restore.hpp>
#include <lockstep/checkpoint/status_file.hpp>
#include <lockstep/hooks/checkpoint_saver.hpp>
#include <lockstep/hooks/step_counter.hpp>
#include <lockstep/hooks/summary_saver.hpp>
#include <lockstep/reduce/node_allocator.hpp>
#include <lockstep/session/monitored_training_session.hpp>

namespace lockstep {
namespace {

/// Thrown through a step when the tally says that some rank failed in it. Not an Error: no user code should
/// catch it.
struct StepAbandoned {};

template <class T>
std::optional<T> interval(std::optional<T> value, std::string_view name) {
  if (value && !(*value >= 0)) {
    throw UsageError(fmt::format("{} is {}; give an interval above 0, or 0 for none", name, *value));
  }
  return value && *value == 0 ? std::nullopt : value;
}

void compare_ranks(const Communicator& comm, std::string_view what, const std::string& mine) {
  const auto digests = comm.all_gather(digest_of(std::as_bytes(std::span(mine))));
  if (std::all_of(digests.begin(), digests.end(), [&](const Digest& d) { return d == digests.front(); }))
    return;
  const auto odd = static_cast<int>(
      std::find_if(digests.begin(), digests.end(), [&](const Digest& d) { return d != digests.front(); }) -
      digests.begin());
  const std::string of_chief = comm.broadcast_text(mine, 0);
  const std::string of_odd = comm.broadcast_text(mine, odd);
  // Show the first line that differs, not the whole.
  const auto lines = [](const std::string& text, std::size_t at) {
    const std::size_t begin = at == 0 ? 0 : text.rfind('\n', at - 1) + 1;
    return text.substr(begin, text.find('\n', at) - begin);
  };
  std::size_t at = 0;
  while (at < of_chief.size() && at < of_odd.size() && of_chief[at] == of_odd[at]) ++at;
  throw EnvironmentError(fmt::format(
      "ranks disagree on {}: rank 0 has '{}', rank {} has '{}'; start all ranks with the same program and "
      "options",
      what, lines(of_chief, std::min(at, of_chief.size())), odd, lines(of_odd, std::min(at, of_odd.size()))));
}

}  // namespace

class MonitoredTrainingSession::Impl final : public RunContext, public StepContext {
 public:
  Impl(const Communicator& comm, State& state, MonitoredTrainingSessionOptions options)
      : comm_(comm),
        state_(state),
        options_(std::move(options)),
        config_(options_.config),
        log_(comm.is_chief() ? config_.log : Log()),
        topology_(comm, config_.ranks_per_node),
        started_(config_.clock->now()) {
    create_hooks();
    compare_at_start();
    for (std::size_t i = 0; i < hooks_.size(); ++i) {
      beginning_chief_only_ = i < chief_only_count_;
      hooks_[i]->begin(*this);
    }
    in_begin_ = false;
    open_directory();
    try {
      create();
    } catch (const std::exception& error) {
      // From here on the directory is ours, and scripts look there for how the run ended.
      write_status("failed", exit_code_of(error), error.what());
      throw;
    }
  }

  // --- the session ---

  bool should_stop() const noexcept { return closed_ || stopping_; }

  void run(const Step& step) {
    if (closed_) throw UsageError("run() after close(); make another session to go on");
    if (stopping_) throw UsageError("run() although should_stop() is true; test it before each step");
    std::exception_ptr failure;
    bool dropped = false;
    StepValues values;
    begin_step();
    try {
      for (const auto& hook : hooks_) hook->before_run(*this);
      values = step(*this);
    } catch (const StepAbandoned&) {
    } catch (const EndOfInput&) {
      ballot_.say(Says::end_of_input);
      dropped = true;
    } catch (const DeadlineExceeded&) {
      lose_contact();
      throw;
    } catch (...) {
      failure = std::current_exception();
    }
    try {
      complete_step(values, failure, dropped);
      if (!failure && !dropped && !ended_input_) after_step(values, failure);
      if (failure) {
        // It came after the ballot of its step: the others hear of it in their next collective, whatever that
        // is.
        begin_step();
        ballot_.say(Says::error);
        send_ballot();
        agree_on_failure(failure);
      }
    } catch (const DeadlineExceeded&) {
      lose_contact();
      throw;
    }
  }

  void close() {
    if (closed_) return;
    if (!stopping_) set_stopping("closed by the program", false);
    // What a rank said after its last step, above all an error, still reaches all.
    begin_step();
    try {
      send_ballot();
      if (tally_.anyone_says(Says::error)) agree_on_failure(nullptr);
      end();
    } catch (const DeadlineExceeded&) {
      lose_contact();
      throw;
    }
  }

  void abandon() noexcept {
    closed_ = true;
    saver_.reset();
  }

  bool closed() const noexcept { return closed_; }
  const std::string& stop_reason() const noexcept { return stop_reason_; }
  bool stopped_early() const noexcept { return stopped_early_; }
  const std::string& restored_from() const noexcept { return restored_from_; }
  const Reducer& reducer() const noexcept { return *reducer_; }
  const Topology& topology() const noexcept { return topology_; }

  // --- RunContext ---

  int rank() const override { return comm_.rank(); }
  int ranks() const override { return comm_.size(); }
  State& state() override { return state_; }
  std::int64_t global_step() const override { return state_.global_step(); }
  const Clock& clock() const override { return *config_.clock; }
  const Log& log() const override { return log_; }
  SummaryWriter& summary() override { return summary_; }

  void agree_on(SecondOrStepTimer& timer) override {
    if (!in_begin_) throw UsageError("timers are registered in begin()");
    timer.use_clock(config_.clock);
    if (!timer.has_seconds()) return;
    // Timers of chief-only hooks take bits from the other end, so that the bits of the rest agree on all
    // ranks.
    auto& timers = beginning_chief_only_ ? chief_timers_ : timers_;
    if (timers_.size() + chief_timers_.size() == kMaxTimers) {
      throw UsageError(
          fmt::format("more than {} timers in seconds; use intervals in steps for some", kMaxTimers));
    }
    timer.agree(false);
    timers.push_back(&timer);
  }

  void request_stop(std::string_view reason) override {
    if (own_stop_reason_.empty()) own_stop_reason_ = reason;
  }

  void request_stop_all(std::string_view reason) override { set_stopping(std::string(reason), false); }
  bool stop_requested() const override { return stopping_ || !own_stop_reason_.empty(); }
  void save_now() override { wants_save_ = true; }

  // --- StepContext ---

  std::int64_t number() const override { return state_.global_step(); }

  std::span<const float> reduce(std::span<const float> gradients, StepValues& local) override {
    if (gradients.size() != state_.parameter_elements()) {
      throw UsageError(
          fmt::format("reduce() got {} gradients (the state has {} parameter elements, padding included)",
                      gradients.size(), state_.parameter_elements()));
    }
    if (reducer_->micro_batches().size() != 1) {
      throw UsageError("reduce(gradients) is for one micro-batch a rank; use begin_micro_batch for others");
    }
    std::ranges::copy(gradients, reducer_->begin_micro_batch().begin());
    reducer_->end_micro_batch();
    set_ballot_values(local);
    reduce_micro_batches();
    finish();
    for (int i = 0; i < tally_.value_count(); ++i)
      local.all()[static_cast<std::size_t>(i)].value = tally_.value_mean(i);
    return reducer_->sum().first(gradients.size());
  }

  MicroBatchRange micro_batches() const override { return reducer_->micro_batches(); }
  std::span<float> begin_micro_batch() override { return reducer_->begin_micro_batch(); }
  void end_micro_batch() override { reducer_->end_micro_batch(); }
  void say_not_finite() override { ballot_.say(Says::not_finite); }

  void reduce_micro_batches() override {
    if (ballot_sent_) throw UsageError("a step reduces twice; sum everything in one go");
    finish_ballot();
    ballot_sent_ = true;
    reduces_ = true;
    tally_ = reducer_->reduce(ballot_);
    if (tally_.anyone_says(Says::error) || tally_.anyone_says(Says::end_of_input)) throw StepAbandoned{};
    check_agreement();
    unfinished_ = true;
  }

  ElementRange slice() const override {
    return config_.share_parameters ? reducer_->slice() : ElementRange{0, state_.parameter_elements()};
  }

  std::span<const float> sum() const override { return reducer_->sum(); }

  void finish() override {
    if (!unfinished_) return;
    unfinished_ = false;
    reducer_->finish();
  }

 private:
  // --- creation ---

  void create() {
    if (!state_.frozen()) freeze();
    // A guess until the first step has shown it: a rank that fails in that step must meet the others'
    // reduction.
    reduces_ = state_.parameter_elements() > 0;
    const std::int64_t micro_batches = config_.micro_batches == 0 ? comm_.size() : config_.micro_batches;
    reducer_ = make_reducer(config_.reduction, topology_, state_.parameter_elements(), micro_batches);
    restore_or_initialize();
    attach_saver();
    report_start();
    write_status("running", std::nullopt);
    for (const auto& hook : hooks_) hook->after_create_session(*this);
  }

  void create_hooks() {
    const auto save_secs = interval(options_.save_checkpoint_secs, "save_checkpoint_secs");
    const auto save_steps = interval(options_.save_checkpoint_steps, "save_checkpoint_steps");
    const auto summary_steps = interval(options_.save_summaries_steps, "save_summaries_steps");
    const auto summary_secs = interval(options_.save_summaries_secs, "save_summaries_secs");
    const auto count_steps = interval(options_.log_step_count_steps, "log_step_count_steps");
    if (options_.summary_dir.empty()) options_.summary_dir = options_.checkpoint_dir;
    if (comm_.is_chief()) hooks_ = options_.chief_only_hooks;
    chief_only_count_ = hooks_.size();
    if (!options_.summary_dir.empty() && count_steps) {
      hooks_.push_back(std::make_shared<StepCounterHook>(count_steps));
    }
    if (!options_.summary_dir.empty() && (summary_steps || summary_secs)) {
      hooks_.push_back(std::make_shared<SummarySaverHook>(summary_steps, summary_secs));
    }
    if (!options_.checkpoint_dir.empty() && (save_secs || save_steps)) {
      saver_ = std::make_shared<CheckpointSaverHook>(CheckpointSaverHook::Options{
          .save_secs = save_secs, .save_steps = save_steps, .stop_on_failure = config_.stop_on_save_failure});
      hooks_.push_back(saver_);
    }
    hooks_.insert(hooks_.end(), options_.hooks.begin(), options_.hooks.end());
    for (const auto& hook : hooks_) {
      if (!hook) throw UsageError("a hook is null");
    }
  }

  void compare_at_start() {
    std::string hooks;
    for (std::size_t i = chief_only_count_; i < hooks_.size(); ++i) hooks += hooks_[i]->describe() + "\n";
    compare_ranks(comm_, "hooks", hooks);
    std::string layout;
    for (const Tensor& tensor : state_.parameter_tensors()) {
      layout += fmt::format("parameter {} {}\n", tensor.name(), to_string(tensor.shape()));
    }
    for (const Tensor& tensor : state_.buffer_tensors()) {
      layout += fmt::format("buffer {} {}\n", tensor.name(), to_string(tensor.shape()));
    }
    for (const std::string& slot : state_.slot_names()) layout += fmt::format("slot {}\n", slot);
    for (const auto& [key, value] : state_.settings()) layout += fmt::format("{} = {}\n", key, value);
    compare_ranks(comm_, "the model or its settings", layout);
    compare_ranks(
        comm_, "options",
        fmt::format("checkpoint_dir = {}\nreduction = {}\nmicro_batches = {}\nmax_run_secs = {}\n{}",
                    options_.checkpoint_dir.string(), static_cast<int>(config_.reduction),
                    config_.micro_batches, config_.max_run_secs, config_.identity));
  }

  void open_directory() {
    WaitPolicy patient = comm_.policy();
    patient.limit = Seconds(options_.max_wait_secs);
    on_chief(comm_.with_policy(patient), "the chief to open the checkpoint directory", [&] {
      if (!options_.checkpoint_dir.empty()) {
        try {
          directory_ = config_.files->create_directory(options_.checkpoint_dir);
        } catch (const FileError& error) {
          throw IoError(
              fmt::format("{}; choose a directory that the chief can write with --checkpoint_dir. Nothing "
                          "has been trained yet",
                          error.what()));
        }
        lock_ = std::make_unique<DirectoryLock>(directory_, *config_.clock, *config_.executor, log_,
                                                *config_.process, LockOptions{.steal = config_.steal});
        restarts_ = 0;
        if (const auto before = read_status(*directory_)) restarts_ = before->restarts + 1;
      }
      if (!options_.summary_dir.empty()) {
        summary_ =
            SummaryWriter(std::make_unique<EventWriter>(config_.files->create_directory(options_.summary_dir),
                                                        *config_.clock, config_.process->host()),
                          log_);
      }
    });
  }

  void freeze() {
    if (config_.share_parameters) {
      NodeAllocator allocator(topology_.node);
      state_.freeze(allocator);
    } else {
      PlainAllocator allocator;
      state_.freeze(allocator);
    }
  }

  void restore_or_initialize() {
    RestoreOptions restore{
        .allow_change = config_.allow_change,
        .fresh = config_.fresh,
        .exact_file = config_.restore_from.empty() ? std::nullopt : std::optional(config_.restore_from),
        .basename = options_.scaffold.saver.basename,
        .shared_arenas = std::nullopt,
        .log = log_};
    const Communicator leaders = topology_.column;  // meaningful for local rank 0 alone
    const bool leader = topology_.node.rank() == 0;
    if (config_.share_parameters)
      restore.shared_arenas = SharedArenas{leader ? std::optional(leaders) : std::nullopt};
    if (!options_.checkpoint_dir.empty()) {
      if (const auto restored = restore_latest(comm_, directory_.get(), state_, restore)) {
        restored_step_ = restored->step;
        restored_from_ = restored->name;
      }
    }
    std::exception_ptr failure;
    if (!restored_step_) {
      on_chief(comm_, "the chief to initialize", [&] {
        if (options_.scaffold.init_fn) options_.scaffold.init_fn(state_);
      });
      for (const Entry& entry : state_.entries()) {
        const bool in_arena =
            entry.path.starts_with("/slots/") || entry.path.starts_with("/buffers/") || is_parameter(entry);
        const auto bytes = std::span(entry.data, entry.bytes());
        if (config_.share_parameters && in_arena) {
          if (leader) leaders.broadcast(bytes);
        } else if (!entry.path.starts_with("/config/")) {
          comm_.broadcast(bytes);
        }
      }
      comm_.barrier("the first values of the state");
    }
    try {
      if (options_.scaffold.local_init_fn) options_.scaffold.local_init_fn(state_);
    } catch (...) {
      failure = std::current_exception();
    }
    throw_together(comm_, failure);
  }

  bool is_parameter(const Entry& entry) const {
    const auto* first = reinterpret_cast<const std::byte*>(state_.parameters().data());
    return entry.data >= first && entry.data < first + state_.parameters().size_bytes();
  }

  void attach_saver() {
    if (!saver_) return;
    std::shared_ptr<Saver> saver;
    on_chief(comm_, "the chief to probe the checkpoint directory", [&] {
      saver = std::make_shared<Saver>(directory_, state_.entries(), options_.scaffold.saver, *config_.clock,
                                      *config_.executor, log_, lock_->token(), *config_.process);
      probe_directory(*directory_, saver->image_bytes(), *config_.process);
    });
    saver_->attach(std::move(saver), restored_step_);
  }

  void report_start() {
    log_.info(fmt::format("{} rank{} on {} node{}, {} reduction{}", comm_.size(),
                          comm_.size() == 1 ? "" : "s", topology_.nodes, topology_.nodes == 1 ? "" : "s",
                          reducer_->name(),
                          config_.share_parameters ? ", parameters shared within nodes" : ""));
    std::string names;
    for (const auto& hook : hooks_) names += (names.empty() ? "" : ", ") + hook->describe();
    if (!names.empty()) log_.info("hooks: " + names);
    if (!options_.checkpoint_dir.empty()) {
      log_.info(restored_step_ ? fmt::format("restored step {} from {}", *restored_step_,
                                             (options_.checkpoint_dir / restored_from_).string())
                               : fmt::format("a new run in {}", options_.checkpoint_dir.string()));
    }
  }

  // --- one step ---

  void begin_step() {
    ballot_ = Tally(comm_.rank());
    ballot_sent_ = false;
    unfinished_ = false;
    ended_input_ = false;
  }

  /// Adds what is not known before the ballot leaves: signals, timers, wishes.
  void finish_ballot() {
    if (const auto signal = config_.signals->received()) ballot_.set_signal(*signal);
    if (!own_stop_reason_.empty()) ballot_.say(Says::stop);
    if (wants_save_) ballot_.say(Says::save);
    if (!comm_.is_chief() || (timers_.empty() && chief_timers_.empty() && config_.max_run_secs <= 0)) return;
    const Seconds now = config_.clock->now();
    for (std::size_t i = 0; i < timers_.size(); ++i) {
      if (timers_[i]->seconds_passed(now)) ballot_.set_timer(static_cast<int>(i));
    }
    for (std::size_t i = 0; i < chief_timers_.size(); ++i) {
      if (chief_timers_[i]->seconds_passed(now)) ballot_.set_timer(kMaxTimers - 1 - static_cast<int>(i));
    }
    if (config_.max_run_secs > 0 && now - started_ >= Seconds(config_.max_run_secs)) {
      out_of_time_ = true;
      ballot_.say(Says::stop);
    }
  }

  void set_ballot_values(const StepValues& values) {
    std::array<double, kMaxValues> numbers;
    std::size_t count = 0;
    for (const auto& value : values.all()) {
      if (!std::isfinite(value.value)) ballot_.say(Says::not_finite);
      numbers[count++] = value.value;
    }
    ballot_.set_values({numbers.data(), count}, values.names_digest());
  }

  /// A ballot by itself: of a step that did not reduce, of the close, of an error. After an error it takes
  /// the shape that the others' next collective most likely has.
  void send_ballot() {
    finish_ballot();
    ballot_sent_ = true;
    tally_ = ballot_.anyone_says(Says::error) && reduces_ && !stopping_ ? reducer_->reduce(ballot_)
                                                                        : reducer_->exchange(ballot_);
  }

  void check_agreement() const {
    if (tally_.agrees()) return;
    throw InternalError(
        "ranks are in different operations of a step: some reduce gradients, some do not, or they return "
        "values of "
        "different names; every rank must run the same step");
  }

  /// Brings the step to a state in which all ranks know how it went. `failure` is this rank's own; it is
  /// thrown, with everybody else's, unless it came too late for this step's ballot.
  void complete_step(StepValues& values, std::exception_ptr& failure, bool dropped) {
    const bool alone = !ballot_sent_;
    if (alone) {
      if (failure) {
        ballot_.say(Says::error);
      } else if (!dropped) {
        set_ballot_values(values);
      }
      // A rank that failed before reducing meets the others in their reduction.
      if ((failure || dropped) && reduces_) {
        finish_ballot();
        ballot_sent_ = true;
        tally_ = reducer_->reduce(ballot_);
      } else {
        send_ballot();
      }
    } else {
      finish();
    }
    if (tally_.anyone_says(Says::error)) agree_on_failure(failure);
    if (tally_.anyone_says(Says::end_of_input)) {
      ended_input_ = true;
      set_stopping(fmt::format("end of input on rank {}", tally_.first_rank(Says::end_of_input)), false);
    } else if (!failure) {
      if (alone) {
        check_agreement();
        for (int i = 0; i < tally_.value_count(); ++i) {
          values.all()[static_cast<std::size_t>(i)].value = tally_.value_mean(i);
        }
      }
      state_.set_global_step(state_.global_step() + 1);
    }
    heed_tally();
  }

  void heed_tally() {
    for (std::size_t i = 0; i < timers_.size(); ++i) timers_[i]->agree(tally_.timer(static_cast<int>(i)));
    for (std::size_t i = 0; i < chief_timers_.size(); ++i) {
      chief_timers_[i]->agree(tally_.timer(kMaxTimers - 1 - static_cast<int>(i)));
    }
    if (tally_.anyone_says(Says::save)) wants_save_ = false;
    if (tally_.anyone_says(Says::signal)) {
      set_stopping(
          fmt::format("{} on rank {}", signal_name(tally_.signal()), tally_.first_rank(Says::signal)), true);
    }
    if (tally_.anyone_says(Says::stop)) {
      const int who = tally_.first_rank(Says::stop);
      const bool early = own_stop_reason_.empty() && out_of_time_;
      const std::string mine =
          early ? fmt::format("1the time limit of {} s", config_.max_run_secs) : "0" + own_stop_reason_;
      const std::string text = comm_.broadcast_text(mine, who);
      const std::string by = who == 0 ? "" : fmt::format(" (asked by rank {})", who);
      set_stopping(text.substr(1) + by, text.front() == '1');
    }
  }

  void after_step(const StepValues& values, std::exception_ptr& failure) {
    const RunValues run_values(values, tally_, state_.global_step());
    try {
      for (const auto& hook : hooks_) hook->after_run(*this, run_values);
    } catch (...) {
      failure = std::current_exception();
    }
  }

  void set_stopping(std::string reason, bool early) {
    if (stopping_) return;
    stopping_ = true;
    stopped_early_ = early;
    stop_reason_ = std::move(reason);
  }

  // --- ends ---

  /// The failure that all ranks throw; null when none has one.
  std::exception_ptr agreed_failure(const std::exception_ptr& own) {
    try {
      throw_together(comm_, own);
    } catch (...) {
      return std::current_exception();
    }
    return nullptr;
  }

  [[noreturn]] void agree_on_failure(const std::exception_ptr& own) {
    std::exception_ptr agreed = agreed_failure(own);
    if (!agreed)
      agreed = std::make_exception_ptr(InternalError("a rank said that it failed and then did not"));
    closed_ = true;
    try {
      std::rethrow_exception(agreed);
    } catch (const std::exception& error) {
      set_stopping(error.what(), false);
      for (const auto& hook : hooks_) hook->on_error(*this, error);
    }
    report_failure(agreed);
  }

  [[noreturn]] void report_failure(const std::exception_ptr& agreed) {
    try {
      std::rethrow_exception(agreed);
    } catch (const std::exception& error) {
      write_status("failed", exit_code_of(error), error.what());
      comm_.barrier("the chief to report an error");
      release_directory();
      throw;
    }
  }

  /// A rank is missing: nothing more can be agreed. `status.json` stays at "running", which scripts take as a
  /// lost job.
  void lose_contact() { closed_ = true; }

  void end() {
    closed_ = true;
    // After a signal little time may be left: what there is goes to disk before hooks take their time to end.
    if (stopped_early_ && saver_) saver_->save_and_wait(*this);
    std::exception_ptr failure;
    for (const bool last : {false, true}) {
      for (const auto& hook : hooks_) {
        if (hook->ends_last() != last) continue;
        try {
          hook->end(*this);
        } catch (...) {
          // The others still end, and the final save is still made.
          if (!failure) failure = std::current_exception();
        }
      }
    }
    summary_.flush();
    if (const std::exception_ptr agreed = agreed_failure(failure)) report_failure(agreed);
    write_status(stopped_early_ ? "stopped" : "done", stopped_early_ ? ExitCode::try_again : ExitCode::done);
    log_.info(fmt::format("stopped after step {}: {}", state_.global_step(), stop_reason_));
    // The chief leaves last: nobody finds it gone while it still saves.
    comm_.barrier("the chief to end the session");
    release_directory();
  }

  void write_status(const char* state, std::optional<ExitCode> code, const std::string& reason = {}) {
    if (!directory_) return;
    const auto pid = config_.process->pid();
    try {
      lockstep::write_status(*directory_,
                             {.state = state,
                              .exit_code = code ? std::optional(static_cast<int>(*code)) : std::nullopt,
                              .reason = reason.empty() ? stop_reason_ : reason,
                              .global_step = state_.global_step(),
                              .restarts = restarts_,
                              .pid = pid,
                              .host = config_.process->host(),
                              .job = config_.process->job_id(),
                              .updated = config_.clock->wall_seconds()});
    } catch (const FileError& error) {
      log_.warn(fmt::format("{}; scripts that read status.json will see the state before", error.what()));
    }
  }

  void release_directory() {
    if (saver_) saver_->attach(nullptr, std::nullopt);  // waits for a save that is still being written
    lock_.reset();
  }

  const Communicator& comm_;
  State& state_;
  MonitoredTrainingSessionOptions options_;
  SessionConfig& config_;
  Log log_;
  Topology topology_;
  Seconds started_;
  std::vector<std::shared_ptr<SessionRunHook>> hooks_;
  std::size_t chief_only_count_ = 0;
  std::shared_ptr<CheckpointSaverHook> saver_;
  std::vector<SecondOrStepTimer*> timers_;
  std::vector<SecondOrStepTimer*> chief_timers_;
  bool in_begin_ = true;
  bool beginning_chief_only_ = false;
  std::shared_ptr<Directory> directory_;
  std::unique_ptr<DirectoryLock> lock_;
  SummaryWriter summary_;
  std::unique_ptr<Reducer> reducer_;
  std::optional<std::int64_t> restored_step_;
  std::string restored_from_;
  std::int64_t restarts_ = 0;

  Tally ballot_;
  Tally tally_;
  bool ballot_sent_ = false;
  bool reduces_ = false;     ///< steps of this session reduce gradients
  bool unfinished_ = false;  ///< this step reduced and has not called finish
  bool ended_input_ = false;
  std::string own_stop_reason_;
  bool out_of_time_ = false;
  bool wants_save_ = false;

  bool stopping_ = false;
  bool stopped_early_ = false;
  bool closed_ = false;
  std::string stop_reason_;
};

MonitoredTrainingSession::MonitoredTrainingSession(const Communicator& comm, State& state,
                                                   MonitoredTrainingSessionOptions options)
    : impl_(std::make_unique<Impl>(comm, state, std::move(options))) {}

MonitoredTrainingSession::~MonitoredTrainingSession() {
  if (impl_->closed()) return;
  if (std::uncaught_exceptions() > 0) {
    impl_->abandon();
    return;
  }
  try {
    impl_->close();
  } catch (const std::exception& error) {
    impl_->log().error(std::string("while closing the session: ") + error.what());
  }
}

bool MonitoredTrainingSession::should_stop() const noexcept {
  return impl_->should_stop();
}
void MonitoredTrainingSession::run(const Step& step) {
  impl_->run(step);
}

void MonitoredTrainingSession::train(const Step& step) {
  while (!should_stop()) run(step);
  close();
}

void MonitoredTrainingSession::close() {
  impl_->close();
}
void MonitoredTrainingSession::request_stop(std::string_view reason) {
  impl_->request_stop(reason);
}
void MonitoredTrainingSession::save_now() {
  impl_->save_now();
}
SummaryWriter& MonitoredTrainingSession::summary() noexcept {
  return impl_->summary();
}
std::int64_t MonitoredTrainingSession::global_step() const noexcept {
  return impl_->global_step();
}
const std::string& MonitoredTrainingSession::stop_reason() const noexcept {
  return impl_->stop_reason();
}
bool MonitoredTrainingSession::stopped_early() const noexcept {
  return impl_->stopped_early();
}
const std::string& MonitoredTrainingSession::restored_from() const noexcept {
  return impl_->restored_from();
}
const Reducer& MonitoredTrainingSession::reducer() const noexcept {
  return impl_->reducer();
}
const Topology& MonitoredTrainingSession::topology() const noexcept {
  return impl_->topology();
}

}  // namespace lockstep
