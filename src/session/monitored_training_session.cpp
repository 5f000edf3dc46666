#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/floating_point.hpp>
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

/// Thrown through a step when the tally says that nobody goes on with it. Not an Error: no user code should
/// catch it.
struct StepAbandoned {};

/// In place of the names of a step's values: this rank does not run a step, it closes.
constexpr std::uint64_t kClosing = 0x636c6f73696e67;

/// The exception being handled, as one that can be told to other ranks.
std::exception_ptr current_failure() {
  try {
    throw;
  } catch (const std::exception&) {
    return std::current_exception();
  } catch (...) {
    return std::make_exception_ptr(TrainingError("an exception of an unknown type"));
  }
}

template <class T>
std::optional<T> interval(std::optional<T> value, std::string_view name) {
  if (value && !(*value >= 0)) {
    throw UsageError(fmt::format("{} is {}; give an interval above 0, or 0 for none", name, *value));
  }
  return value && *value == 0 ? std::nullopt : value;
}

void check_limit(double seconds, std::string_view name) {
  if (!(seconds >= 0)) {
    throw UsageError(fmt::format("{} is {}; give seconds above 0, or 0 for no limit", name, seconds));
  }
}

Communicator patient(const Communicator& comm, double seconds) {
  WaitPolicy policy = comm.policy();
  policy.limit = Seconds(seconds >= 0 ? seconds : 0);
  return comm.with_policy(policy);
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
    const std::string line = text.substr(begin, text.find('\n', at) - begin);
    return line.empty() ? std::string("nothing more") : "'" + line + "'";
  };
  std::size_t at = 0;
  while (at < of_chief.size() && at < of_odd.size() && of_chief[at] == of_odd[at]) ++at;
  throw EnvironmentError(fmt::format(
      "ranks disagree on {}: rank 0 has {}, rank {} has {}; start all ranks with the same program and "
      "options",
      what, lines(of_chief, std::min(at, of_chief.size())), odd, lines(of_odd, std::min(at, of_odd.size()))));
}

}  // namespace

class MonitoredTrainingSession::Impl final : public RunContext, public StepContext {
 public:
  Impl(Communicator comm, State& state, MonitoredTrainingSessionOptions options)
      : comm_(std::move(comm)),
        start_(patient(comm_, options.max_wait_secs)),
        state_(state),
        options_(std::move(options)),
        config_(options_.config),
        log_(comm_.is_chief() ? config_.log : Log()),
        started_(config_.clock->now()) {
    // The first wait of all: it names the ranks that have not come.
    start_.barrier("all ranks to create the session");
    std::string hooks;
    together([&] {
      use_standard_floating_point();
      create_hooks();
      for (std::size_t i = chief_only_count_; i < hooks_.size(); ++i) hooks += hooks_[i]->describe() + "\n";
    });
    compare_at_start(hooks);
    topology_.emplace(comm_, config_.ranks_per_node);
    try {
      together([&] {
        for (; begun_ < hooks_.size(); ++begun_) {
          beginning_chief_only_ = begun_ < chief_only_count_;
          hooks_[begun_]->begin(*this);
        }
      });
      in_begin_ = false;
      open_directory();
      create();
    } catch (const std::exception& error) {
      tell_hooks(error);
      // Where the directory is ours, scripts look there for how the run ended.
      write_status("failed", exit_code_of(error), error.what());
      release_directory();
      throw;
    }
  }

  ~Impl() override {
    try {
      release_directory();
    } catch (const std::exception& error) {
      log_.error(error.what());
    }
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  // --- the session ---

  bool should_stop() const noexcept { return closed_ || stopping_; }

  void run(const Step& step, const Feeds& feeds) {
    if (closed_) throw UsageError("run() after close(); make another session to go on");
    if (stopping_) throw UsageError("run() although should_stop() is true; test it before each step");
    std::exception_ptr failure;
    bool dropped = false;
    StepValues values;
    begin_step();
    feeds_ = feeds;
    try {
      for (const auto& hook : hooks_) {
        traced(*hook, [&] { hook->before_run(*this); });
      }
      const auto phase = trace_.phase("step");
      values = step(*this);
    } catch (const StepAbandoned&) {
    } catch (const EndOfInput&) {
      if (ballot_sent_) {
        failure = std::make_exception_ptr(UsageError(
            "a step threw EndOfInput after it had reduced, when the others could no longer drop the step; "
            "look for data before reducing"));
      } else {
        ballot_.say(Says::end_of_input);
        dropped = true;
      }
    } catch (...) {
      failure = current_failure();
    }
    if (lost_) lose_contact();
    try {
      complete_step(values, failure, dropped);
      // Even if this rank has failed since its ballot left: the others do not know and wait for its texts.
      if (!ended_input_) deliver_gathered(failure);
      if (!failure && !ended_input_) after_step(values, failure);
      if (failure) {
        // It came after the ballot of its step: the others hear of it in their next collective, be that of a
        // step or of the close.
        begin_step();
        ballot_.say(Says::error);
        send_ballot(reduces_);
        agree_on_failure(failure);
      }
    } catch (const DeadlineExceeded&) {
      closed_ = true;
      throw;
    }
  }

  void close() {
    if (closed_) return;
    if (!stopping_) set_stopping("closed by the program", false);
    // What a rank said after its last step, above all an error, still reaches all.
    begin_step();
    ballot_.set_values({}, kClosing);
    try {
      send_ballot(reduces_);
      if (tally_.anyone_says(Says::error)) agree_on_failure(nullptr);
      if (!tally_.agrees()) fail_in_disagreement();
      end();
    } catch (const DeadlineExceeded&) {
      closed_ = true;
      throw;
    }
  }

  /// An exception of the program passes between two steps. Nothing can be agreed any more: the other ranks
  /// hear of it when their wait ends.
  void abandon() noexcept {
    closed_ = true;
    const std::string problem = fmt::format(
        "an exception left the program after step {}; what came after the newest checkpoint is lost",
        state_.global_step());
    try {
      log_.error(problem);
      write_status("failed", ExitCode::internal, problem);
    } catch (const std::exception&) {
      // The exception under way says more.
    }
  }

  bool closed() const noexcept { return closed_; }
  const std::string& stop_reason() const noexcept { return stop_reason_; }
  bool stopped_early() const noexcept { return stopped_early_; }
  const std::string& restored_from() const noexcept { return restored_from_; }
  const Reducer& reducer() const noexcept { return *reducer_; }
  const Topology& topology() const override { return *topology_; }

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
    if (own_stop_reason_.empty()) own_stop_reason_ = reason.empty() ? "no reason given" : reason;
  }

  void request_stop_all(std::string_view reason) override { set_stopping(std::string(reason), false); }
  bool stop_requested() const override { return stopping_ || !own_stop_reason_.empty(); }
  void save_now() override { wants_save_ = true; }

  Feeds& feeds() override { return feeds_; }
  const Feeds& feeds() const override { return feeds_; }
  StepTrace& trace() override { return trace_; }

  void gather(std::string text, Deliver deliver) override {
    gathers_.emplace_back(std::move(text), std::move(deliver));
  }

  // --- StepContext ---

  std::int64_t number() const override { return state_.global_step(); }

  std::span<const float> reduce(std::span<const float> gradients, StepValues& local) override {
    if (config_.share_parameters) {
      throw UsageError(
          "reduce(gradients) is for parameters of one's own; with share_parameters use begin_micro_batch, "
          "update slice() and call finish");
    }
    if (gradients.size() != state_.parameter_elements()) {
      throw UsageError(
          fmt::format("reduce() got {} gradients (the state has {} parameter elements, padding included)",
                      gradients.size(), state_.parameter_elements()));
    }
    if (reducer_->micro_batches().size() != 1) {
      throw UsageError("reduce(gradients) is for one micro-batch a rank; use begin_micro_batch for others");
    }
    std::ranges::copy(gradients, begin_micro_batch().begin());
    end_micro_batch();
    set_ballot_values(local);
    reduce_micro_batches();
    finish();
    for (int i = 0; i < tally_.value_count(); ++i)
      local.all()[static_cast<std::size_t>(i)].value = tally_.value_mean(i);
    return reducer_->sum().first(gradients.size());
  }

  MicroBatchRange micro_batches() const override { return reducer_->micro_batches(); }
  std::int64_t micro_batches_in_step() const override { return micro_batches_; }
  std::span<float> begin_micro_batch() override {
    return in_contact([&] { return reducer_->begin_micro_batch(); });
  }
  void end_micro_batch() override {
    reducer_->end_micro_batch();
    ++micro_batches_done_;
  }
  void say_not_finite() override { ballot_.say(Says::not_finite); }

  void reduce_micro_batches() override {
    if (ballot_sent_) throw UsageError("a step reduces twice; sum everything in one go");
    if (micro_batches_done_ != reducer_->micro_batches().size()) {
      throw UsageError(fmt::format("a step reduces after {} micro-batches ({} are this rank's); compute all",
                                   micro_batches_done_, reducer_->micro_batches().size()));
    }
    send_ballot(true);
    if (tally_.anyone_says(Says::error) || tally_.anyone_says(Says::end_of_input) || !tally_.agrees()) {
      throw StepAbandoned{};
    }
    unfinished_ = true;
  }

  bool shares_parameters() const override { return config_.share_parameters; }

  ElementRange slice() const override {
    return config_.share_parameters ? reducer_->slice() : ElementRange{0, state_.parameter_elements()};
  }

  std::span<const float> sum() const override { return reducer_->sum(); }

  void finish() override {
    if (!unfinished_) return;
    unfinished_ = false;
    // MPI's sum is whole on every rank already, and nobody reads what is another's.
    if (config_.reduction == ReductionKind::mpi && !config_.share_parameters) return;
    const auto phase = trace_.phase("finish");
    in_contact([&] { reducer_->finish(); });
  }

 private:
  // --- creation ---

  void create() {
    if (!state_.frozen()) freeze();
    compare_entries();
    // A guess until the first step has shown it: a rank that fails in that step must meet the others'
    // reduction.
    reduces_ = state_.parameter_elements() > 0;
    micro_batches_ = config_.micro_batches == 0 ? comm_.size() : config_.micro_batches;
    reducer_ = make_reducer(config_.reduction, *topology_, state_.parameter_elements(), micro_batches_);
    restore_or_initialize();
    attach_saver();
    open_summaries();
    report_start();
    write_status("running", std::nullopt);
    together([&] {
      for (const auto& hook : hooks_) hook->after_create_session(*this);
    });
  }

  void create_hooks() {
    const auto save_secs = interval(options_.save_checkpoint_secs, "save_checkpoint_secs");
    const auto save_steps = interval(options_.save_checkpoint_steps, "save_checkpoint_steps");
    const auto summary_steps = interval(options_.save_summaries_steps, "save_summaries_steps");
    const auto summary_secs = interval(options_.save_summaries_secs, "save_summaries_secs");
    const auto count_steps = interval(options_.log_step_count_steps, "log_step_count_steps");
    check_limit(options_.max_wait_secs, "max_wait_secs");
    check_limit(options_.stop_grace_period_secs, "stop_grace_period_secs");
    check_limit(config_.max_run_secs, "max_run_secs");
    if (config_.share_parameters && state_.frozen()) {
      throw UsageError(
          "share_parameters needs a state that the session freezes: memory that is already there cannot be "
          "shared; do not call freeze");
    }
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
          .save_secs = save_secs,
          .save_steps = save_steps,
          .stop_on_failure = config_.stop_on_save_failure,
          .metric = options_.scaffold.saver.keep_best ? options_.scaffold.saver.keep_best->metric : ""});
      hooks_.push_back(saver_);
    }
    hooks_.insert(hooks_.end(), options_.hooks.begin(), options_.hooks.end());
    for (const auto& hook : hooks_) {
      if (!hook) throw UsageError("a hook is null");
    }
    find_saver();
    for (const auto& hook : hooks_) after_run_order_.push_back(hook.get());
    std::ranges::stable_partition(after_run_order_,
                                  [](const SessionRunHook* hook) { return !hook->looks_last(); });
  }

  /// A directory has one saver: the default one, or one that the user brings.
  void find_saver() {
    for (const auto& hook : hooks_) {
      const auto found = std::dynamic_pointer_cast<CheckpointSaverHook>(hook);
      if (!found || found == saver_) continue;
      if (saver_) {
        throw UsageError(
            fmt::format("two hooks save checkpoints ('{}' and '{}'), but a directory has one saver; set "
                        "save_checkpoint_secs and save_checkpoint_steps to 0 to use your own alone",
                        saver_->describe(), found->describe()));
      }
      if (options_.checkpoint_dir.empty()) {
        throw UsageError(fmt::format("'{}' has nowhere to save to; set checkpoint_dir", found->describe()));
      }
      saver_ = found;
    }
  }

  void compare_at_start(const std::string& hooks) {
    compare_ranks(start_, "hooks", hooks);
    std::string layout = state_.frozen() ? "frozen\n" : "not yet frozen\n";
    for (const Tensor& tensor : state_.parameter_tensors()) {
      layout += fmt::format("parameter {} {}\n", tensor.name(), to_string(tensor.shape()));
    }
    for (const Tensor& tensor : state_.buffer_tensors()) {
      layout += fmt::format("buffer {} {}\n", tensor.name(), to_string(tensor.shape()));
    }
    for (const std::string& slot : state_.slot_names()) layout += fmt::format("slot {}\n", slot);
    for (const auto& [key, value] : state_.settings()) layout += fmt::format("{} = {}\n", key, value);
    compare_ranks(start_, "the model or its settings", layout);
    compare_ranks(
        start_, "options",
        fmt::format("checkpoint_dir = {}\nreduction = {}\nmicro_batches = {}\nshare_parameters = {}\n"
                    "ranks_per_node = {}\nmax_run_secs = {}\nfresh = {}\nrestore_from = {}\n{}",
                    options_.checkpoint_dir.string(), static_cast<int>(config_.reduction),
                    config_.micro_batches, config_.share_parameters, config_.ranks_per_node,
                    config_.max_run_secs, config_.fresh, config_.restore_from, config_.identity));
  }

  /// With what is known only after `freeze`: attached memory.
  void compare_entries() const {
    std::string layout;
    for (const Entry& entry : state_.entries()) {
      layout += fmt::format("{} {} {}\n", entry.path, to_string(entry.type), to_string(entry.shape));
    }
    compare_ranks(start_, "what a checkpoint holds", layout);
  }

  void open_directory() {
    on_chief(start_, "the chief to open the checkpoint directory", [&] {
      if (!options_.checkpoint_dir.empty()) {
        std::shared_ptr<Directory> directory;
        try {
          directory = config_.files->create_directory(options_.checkpoint_dir);
        } catch (const FileError& error) {
          throw IoError(
              fmt::format("{}; choose a directory that the chief can write with --checkpoint_dir. Nothing "
                          "has been trained yet",
                          error.what()));
        }
        lock_ = std::make_unique<DirectoryLock>(directory, *config_.clock, *config_.executor, log_,
                                                *config_.process, LockOptions{.steal = config_.steal});
        directory_ = std::move(directory);  // not before: what another job owns stays as it is
        if (const auto before = read_status(*directory_)) restarts_ = before->restarts + 1;
      }
    });
  }

  /// Once it is sure that the run begins: one that is refused leaves no file.
  void open_summaries() {
    if (options_.summary_dir.empty()) return;
    on_chief(start_, "the chief to open its event file", [&] {
      summary_ =
          SummaryWriter(std::make_unique<EventWriter>(config_.files->create_directory(options_.summary_dir),
                                                      *config_.clock, config_.process->host()),
                        log_);
    });
  }

  void freeze() {
    if (config_.share_parameters) {
      NodeAllocator allocator(topology_->node);
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
        .key = options_.scaffold.saver.key,
        .log = log_};
    const Communicator leaders =
        patient(topology_->column, options_.max_wait_secs);  // meaningful for local rank 0 alone
    const bool leader = topology_->node.rank() == 0;
    if (config_.share_parameters)
      restore.shared_arenas = SharedArenas{leader ? std::optional(leaders) : std::nullopt};
    if (!options_.checkpoint_dir.empty()) {
      if (const auto restored = restore_latest(start_, directory_.get(), state_, restore)) {
        restored_step_ = restored->step;
        restored_from_ = restored->name;
      }
    }
    if (!restored_step_) {
      on_chief(start_, "the chief to initialize", [&] {
        if (options_.scaffold.init_fn) options_.scaffold.init_fn(state_);
      });
      for (const Entry& entry : state_.entries()) {
        const bool in_arena =
            entry.path.starts_with("/slots/") || entry.path.starts_with("/buffers/") || is_parameter(entry);
        const auto bytes = std::span(entry.data, entry.bytes());
        if (config_.share_parameters && in_arena) {
          if (leader) leaders.broadcast(bytes);
        } else if (!entry.path.starts_with("/config/")) {
          start_.broadcast(bytes);
        }
      }
      start_.barrier("the first values of the state");
    }
    together([&] {
      if (options_.scaffold.local_init_fn) options_.scaffold.local_init_fn(state_);
    });
  }

  bool is_parameter(const Entry& entry) const {
    const auto* first = reinterpret_cast<const std::byte*>(state_.parameters().data());
    return entry.data >= first && entry.data < first + state_.parameters().size_bytes();
  }

  void attach_saver() {
    if (options_.checkpoint_dir.empty()) return;
    std::shared_ptr<Saver> saver;
    on_chief(start_, "the chief to probe the checkpoint directory", [&] {
      if (!saver_) return;
      saver = std::make_shared<Saver>(directory_, state_.entries(), options_.scaffold.saver, *config_.clock,
                                      *config_.executor, log_, lock_->token(), *config_.process);
      probe_directory(*directory_, saver->image_bytes(), *config_.process);
    });
    if (saver_) saver_->attach(std::move(saver), restored_step_);
  }

  void report_start() {
    log_.info(fmt::format("{} rank{} on {} node{}, {} reduction{}", comm_.size(),
                          comm_.size() == 1 ? "" : "s", topology_->nodes, topology_->nodes == 1 ? "" : "s",
                          reducer_->name(),
                          config_.share_parameters ? ", parameters shared within nodes" : ""));
    std::string names;
    for (const auto& hook : hooks_) names += (names.empty() ? "" : ", ") + hook->describe();
    if (!names.empty()) log_.info("hooks: " + names);
    if (!options_.checkpoint_dir.empty() && !restored_step_) {
      log_.info(fmt::format("a new run in {}", options_.checkpoint_dir.string()));
    }
  }

  // --- one step ---

  void begin_step() {
    ballot_ = Tally(comm_.rank());
    ballot_sent_ = false;
    unfinished_ = false;
    ended_input_ = false;
    micro_batches_done_ = 0;
  }

  /// Runs what waits for other ranks inside the user's step, where a wait that reached its limit must be told
  /// from a DeadlineExceeded of the user.
  template <class Work>
  std::invoke_result_t<Work> in_contact(Work&& work) {
    try {
      return work();
    } catch (const DeadlineExceeded& missing) {
      lost_ = std::make_exception_ptr(
          DeadlineExceeded(fmt::format("in step {}: {}", state_.global_step() + 1, missing.what())));
      std::rethrow_exception(lost_);
    }
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

  /// `with_sum`: in the shape of a reduction, whatever there is to sum. Ranks whose next collectives meet
  /// must use one shape, or their messages between nodes do not fit: so once a session reduces, ballots of
  /// errors and of the close have that shape, too.
  void send_ballot(bool with_sum) {
    finish_ballot();
    ballot_sent_ = true;
    const auto phase = trace_.phase("reduce");
    tally_ = in_contact([&] { return with_sum ? reducer_->reduce(ballot_) : reducer_->exchange(ballot_); });
    trace_.meet();
  }

  [[noreturn]] void fail_in_disagreement() {
    // All ranks have the same tally, so all come here.
    fail(std::make_exception_ptr(EnvironmentError(
        fmt::format("ranks disagree after step {}: some reduce gradients, some do not, or close, or they "
                    "return values of different names; every rank must run the same steps",
                    state_.global_step()))));
  }

  /// Brings the step to a state in which all ranks know how it went. `failure` is this rank's own; it is
  /// thrown, with everybody else's, unless it came too late for this step's ballot.
  void complete_step(StepValues& values, const std::exception_ptr& failure, bool dropped) {
    const bool alone = !ballot_sent_;
    if (alone) {
      if (failure) {
        ballot_.say(Says::error);
      } else if (!dropped) {
        set_ballot_values(values);
      }
      // A rank that failed before reducing meets the others in their reduction.
      send_ballot((failure || dropped) && reduces_);
    } else {
      if (failure && unfinished_ && config_.share_parameters) spoil_my_slice();
      finish();
    }
    if (tally_.anyone_says(Says::error)) agree_on_failure(failure);
    if (tally_.anyone_says(Says::end_of_input)) {
      ended_input_ = true;
      set_stopping(fmt::format("end of input on rank {}", tally_.first_rank(Says::end_of_input)), false);
    } else if (!tally_.agrees()) {
      fail_in_disagreement();
    } else {
      reduces_ = tally_.elements() > 0;
      if (alone) {
        for (int i = 0; i < tally_.value_count(); ++i) {
          values.all()[static_cast<std::size_t>(i)].value = tally_.value_mean(i);
        }
      }
      state_.set_global_step(state_.global_step() + 1);
    }
    heed_tally();
  }

  /// This rank failed where it should have updated its slice, and the others do not know yet. Shared
  /// parameters that were updated in part must not look like a step: what is not finite is never saved.
  void spoil_my_slice() {
    const ElementRange mine = reducer_->slice();
    std::ranges::fill(state_.parameters().subspan(mine.first, mine.size()),
                      std::numeric_limits<float>::quiet_NaN());
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
      for (SessionRunHook* hook : after_run_order_) {
        traced(*hook, [&] { hook->after_run(*this, run_values); });
      }
    } catch (...) {
      failure = current_failure();
    }
  }

  /// Calls a hook; in a profile the time is its own.
  template <class Work>
  void traced(const SessionRunHook& hook, Work&& work) {
    if (!trace_.on()) {
      work();
      return;
    }
    const auto phase = trace_.phase(hook.name());
    work();
  }

  /// All ranks are here, after a tally without errors: what they asked for in `gather` can be sent.
  void deliver_gathered(std::exception_ptr& failure) {
    if (gathers_.empty()) return;
    for (const auto& [text, deliver] : std::exchange(gathers_, {})) {
      const std::vector<std::string> texts = comm_.all_gather_text(text);
      try {
        if (comm_.is_chief()) deliver(texts);
      } catch (...) {
        if (!failure) failure = current_failure();
      }
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
  std::exception_ptr agreed_failure(const Communicator& comm, const std::exception_ptr& own) const {
    try {
      throw_together(comm, own);
    } catch (...) {
      const std::exception_ptr agreed = std::current_exception();
      return agreed == own && comm.rank() != 0 ? with_rank(own) : agreed;
    }
    return nullptr;
  }

  /// This rank's own failure as the others tell it. A type that is not ours is left as it is: they cannot
  /// throw it, but a handler here may be waiting for it.
  std::exception_ptr with_rank(const std::exception_ptr& own) const {
    try {
      std::rethrow_exception(own);
    } catch (const Error& error) {
      try {
        throw_error(error.exit_code(), fmt::format("rank {}: {}", comm_.rank(), error.what()));
      } catch (...) {
        return std::current_exception();
      }
    } catch (...) {
      return own;
    }
  }

  /// Runs a part of the creation that may fail on one rank alone; throws on all if it does.
  template <class Work>
  void together(Work work) {
    std::exception_ptr failure;
    try {
      work();
    } catch (...) {
      failure = current_failure();
    }
    if (const auto agreed = agreed_failure(start_, failure)) std::rethrow_exception(agreed);
  }

  [[noreturn]] void agree_on_failure(const std::exception_ptr& own) {
    std::exception_ptr agreed = agreed_failure(comm_, own);
    if (!agreed)
      agreed = std::make_exception_ptr(InternalError("a rank said that it failed and then did not"));
    fail(agreed);
  }

  /// Ends the session with an error that all ranks have.
  [[noreturn]] void fail(const std::exception_ptr& agreed) {
    closed_ = true;
    try {
      std::rethrow_exception(agreed);
    } catch (const std::exception& error) {
      stopping_ = true;
      stopped_early_ = false;
      stop_reason_ = error.what();
      tell_hooks(error);
    }
    report_failure(agreed);
  }

  void tell_hooks(const std::exception& error) {
    for (std::size_t i = 0; i < hooks_.size() && i <= begun_; ++i) {
      try {
        hooks_[i]->on_error(*this, error);
      } catch (...) {
        log_.error(fmt::format("on_error of {} threw; it must not", hooks_[i]->name()));
      }
    }
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
  [[noreturn]] void lose_contact() {
    closed_ = true;
    std::rethrow_exception(lost_);
  }

  void end() {
    closed_ = true;
    std::exception_ptr failure;
    const auto guarded = [&](auto&& work) {
      try {
        work();
      } catch (...) {
        // The other hooks still end, and the final save is still made.
        if (!failure) failure = current_failure();
      }
    };
    deliver_gathered(failure);
    // After a signal little time may be left: what there is goes to disk before hooks take their time to end.
    if (stopped_early_ && saver_) guarded([&] { saver_->save_and_wait(*this); });
    const bool saves = saver_ && comm_.is_chief();
    const Digest before = saves ? content_digest(state_.entries()) : Digest{};
    for (const auto& hook : hooks_) {
      if (!hook->looks_last()) guarded([&] { hook->end(*this); });
    }
    if (saves && content_digest(state_.entries()) != before) saver_->save_again();
    for (const auto& hook : hooks_) {
      if (hook->looks_last()) guarded([&] { hook->end(*this); });
    }
    summary_.flush();
    if (const std::exception_ptr agreed = agreed_failure(comm_, failure)) {
      report_failure(agreed);
    }
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

  Communicator comm_;
  Communicator start_;  ///< the same, with the patience that the creation has
  State& state_;
  MonitoredTrainingSessionOptions options_;
  SessionConfig& config_;
  Log log_;
  std::optional<Topology> topology_;
  Seconds started_;
  std::vector<std::shared_ptr<SessionRunHook>> hooks_;
  std::size_t chief_only_count_ = 0;
  std::vector<SessionRunHook*> after_run_order_;  ///< the same, those that look last behind the others
  std::size_t begun_ = 0;                         ///< hooks whose `begin` has returned
  std::shared_ptr<CheckpointSaverHook> saver_;
  std::vector<SecondOrStepTimer*> timers_;
  std::vector<SecondOrStepTimer*> chief_timers_;
  bool in_begin_ = true;
  bool beginning_chief_only_ = false;
  std::shared_ptr<Directory> directory_;
  std::unique_ptr<DirectoryLock> lock_;
  SummaryWriter summary_;
  std::unique_ptr<Reducer> reducer_;
  std::int64_t micro_batches_ = 0;  ///< of a step, over all ranks
  std::optional<std::int64_t> restored_step_;
  std::string restored_from_;
  std::int64_t restarts_ = 0;

  Tally ballot_;
  Tally tally_;
  bool ballot_sent_ = false;
  bool reduces_ = false;     ///< the last step reduced gradients; before the first, a guess
  bool unfinished_ = false;  ///< this step reduced and has not called finish
  bool ended_input_ = false;
  std::int64_t micro_batches_done_ = 0;
  std::exception_ptr lost_;  ///< a wait of this step reached its limit
  Feeds feeds_;
  StepTrace trace_;
  std::vector<std::pair<std::string, Deliver>> gathers_;  ///< asked for by hooks, not yet sent
  std::string own_stop_reason_;
  bool out_of_time_ = false;
  bool wants_save_ = false;

  bool stopping_ = false;
  bool stopped_early_ = false;
  bool closed_ = false;
  std::string stop_reason_;
};

MonitoredTrainingSession::MonitoredTrainingSession(Communicator comm, State& state,
                                                   MonitoredTrainingSessionOptions options)
    : impl_(std::make_unique<Impl>(std::move(comm), state, std::move(options))) {}

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
  } catch (...) {
    impl_->log().error("while closing the session: an exception of an unknown type");
  }
}

bool MonitoredTrainingSession::should_stop() const noexcept {
  return impl_->should_stop();
}
void MonitoredTrainingSession::run(const Step& step, const Feeds& feeds) {
  impl_->run(step, feeds);
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
