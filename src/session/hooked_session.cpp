#include "hooked_session.hpp"

#include <algorithm>
#include <functional>
#include <span>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/signals.hpp>
#include <lockstep/checkpoint/probe.hpp>
#include <lockstep/mpi/fold_ranks.hpp>
#include <lockstep/summary/event_writer.hpp>

namespace lockstep {

/// What a function given to run_step_fn sees.
class HookedSession::StepFn final : public StepFnContext {
 public:
  explicit StepFn(HookedSession& hooked) : hooked_(hooked) {}

  RawSession& session() override { return *hooked_.session_; }

  StepValues run_with_hooks(const RawSession::Step& step, const Feeds& feeds) override {
    hooked_.session_->throw_news();
    hooked_.require_input();
    if (hooked_.stopping() && !hooked_.heard_between_) throw EndOfInput(hooked_.cause().reason);
    StepValues values;
    try {
      values = hooked_.run(step, feeds);
    } catch (const AgreedFailure& failure) {
      hooked_.session_->keep_news(failure);
      std::rethrow_exception(failure.error);
    } catch (const DeadlineExceeded&) {
      hooked_.session_->keep_news(std::current_exception());
      throw;
    }
    if (hooked_.dropped_) hooked_.require_input();
    return values;
  }

  [[noreturn]] void request_stop(std::string_view reason) override {
    asked = true;
    throw EndOfInput(std::string(reason));
  }

  bool asked = false;

 private:
  HookedSession& hooked_;
};

HookedSession::HookedSession(SessionGround& ground, Hooks hooks, Hooks chief_only_hooks, bool recovers)
    : ground_(ground), recovers_(recovers) {
  if (ground.comm.is_chief()) hooks_ = std::move(chief_only_hooks);
  chief_only_count_ = hooks_.size();
  hooks_.insert(hooks_.end(), hooks.begin(), hooks.end());
  for (const auto& hook : hooks_) after_run_order_.push_back(hook.get());
}

std::string HookedSession::describe() const {
  std::string text;
  for (const auto& hook : hooks_) {
    if (!hook) throw UsageError("a hook is null");
  }
  for (std::size_t i = chief_only_count_; i < hooks_.size(); ++i) text += hooks_[i]->describe() + "\n";
  return text;
}

void HookedSession::begin() {
  Failure failure;
  in_begin_ = true;
  phase_ = "begin";
  try {
    find_saver();
    if (ground_.comm.is_chief()) set_time_limit();
    std::stable_partition(after_run_order_.begin(), after_run_order_.end(),
                          [](const SessionRunHook* hook) { return !hook->looks_last(); });
    for (; begun_ < hooks_.size(); ++begun_) {
      hook_ = hooks_[begun_].get();
      hooks_[begun_]->begin(*this);
    }
  } catch (...) {
    failure = current_failure(phase(), global_step());
  }
  in_begin_ = false;
  hook_ = nullptr;
  phase_ = "the program";
  agree(ground_.start, failure);
}

/// A directory has one saver.
void HookedSession::find_saver() {
  for (std::size_t i = 0; i < hooks_.size(); ++i) {
    if (i < chief_only_count_ && hooks_[i]->needs_all_ranks()) {
      throw UsageError(
          fmt::format("'{}' is given as a hook of the chief alone, but it acts for all ranks; give it in "
                      "`hooks` on every rank",
                      hooks_[i]->describe()));
    }
    const auto found = std::dynamic_pointer_cast<CheckpointSaverHook>(hooks_[i]);
    if (!found) continue;
    if (saver_) {
      throw UsageError(
          fmt::format("two hooks save checkpoints ('{}' and '{}'), but a directory has one saver; set "
                      "save_checkpoint_secs and save_checkpoint_steps to 0 to use your own alone",
                      saver_->describe(), found->describe()));
    }
    if (ground_.options.checkpoint_dir.empty()) {
      throw UsageError(fmt::format("'{}' has nowhere to save to; set checkpoint_dir", found->describe()));
    }
    if (state_in_parts() && i < chief_only_count_) {
      throw UsageError(
          fmt::format("'{}' is a hook of the chief alone, but a save of a sharded optimizer or of bf16 "
                      "gradients needs all ranks; give it in `hooks` on every rank",
                      found->describe()));
    }
    saver_ = found;
  }
}

void HookedSession::open(CreatedSession& session, Coordinator& coordinator,
                         const std::function<void()>& ready) {
  session_ = &session;
  session_->set_owner(*this);
  coordinator_ = &coordinator;
  attach_saver();
  open_summaries();
  ready();
  Failure failure;
  phase_ = "after_create_session";
  try {
    for (const auto& hook : hooks_) {
      hook_ = hook.get();
      hook->after_create_session(*this);
    }
  } catch (...) {
    failure = current_failure(phase(), global_step());
  }
  hook_ = nullptr;
  phase_ = "the program";
  agree(ground_.start, failure);
}

/// The earlier of the two, on the chief's clock.
void HookedSession::set_time_limit() {
  const SessionConfig& config = ground_.config;
  const Seconds margin(config.time_margin_secs);
  const Seconds run(config.max_run_secs);
  std::optional<Seconds> left;
  if (config.end_time) left = Seconds(*config.end_time - config.clock->wall_seconds());
  if (config.max_run_secs > 0 && (!left || run <= *left)) {
    time_limit_.emplace(ground_.started + run, margin, fmt::format("the time limit of {} s", run.count()));
  } else if (left) {
    time_limit_.emplace(config.clock->now() + *left, margin, "the time of the allocation");
    ground_.log.info(
        fmt::format("the allocation ends in {:.0f} s; the run leaves with a save in time", left->count()));
  }
}

void HookedSession::attach_saver() {
  if (ground_.options.checkpoint_dir.empty()) return;
  SessionConfig& config = ground_.config;
  ShardWord word;
  std::optional<ShardPlan> plan = plan_shards(word);
  std::shared_ptr<Saver> saver;
  ground_.on_chief("the chief to probe the checkpoint directory", "", [&] {
    if (!saver_) return;
    RunDirectory& run = *ground_.directory;
    saver = std::make_shared<Saver>(run.directory(), plan ? plan->cut.manifest : ground_.state.entries(),
                                    ground_.options.scaffold.saver, *config.clock, *config.executor,
                                    ground_.log, run.token(), *config.process,
                                    plan ? std::optional(plan->cut.table) : std::nullopt);
    probe_directory(*run.directory(), saver->image_bytes(), *config.process);
  });
  const auto& restored = session_->restored();
  gathered_step_ = global_step();  // restored or initialized there
  if (!saver_) return;
  saver_->attach(std::move(saver), restored ? std::optional(restored->step) : std::nullopt,
                 plan ? std::optional(shards_of(*plan, word)) : std::nullopt);
}

/// Whether checkpoints are written in shards: the chief decides, who alone knows a saver of its own.
std::optional<ShardPlan> HookedSession::plan_shards(ShardWord& word) {
  std::uint64_t bytes = 0;
  for (const Entry& entry : ground_.state.entries()) bytes += entry.bytes();
  const SaverOptions& options = ground_.options.scaffold.saver;
  if (bytes <= options.shard_bytes) return std::nullopt;
  if (ground_.comm.is_chief() && saver_) {
    const auto common = hooks_.begin() + static_cast<std::ptrdiff_t>(chief_only_count_);
    const bool in_shards = std::find(common, hooks_.end(), saver_) != hooks_.end();
    word = {in_shards ? 1U : 0U, ground_.directory->token(), ground_.config.process->nonce()};
  }
  ground_.start.broadcast_values(std::span(&word, 1));
  if (word.sharded == 0) return std::nullopt;
  return lockstep::plan_shards(*ground_.topology, ground_.state, options.shard_bytes);
}

/// What shards are signed with: the chief's, who may be the only one that can read it; null: they are not.
std::shared_ptr<const MacKey> HookedSession::key_of_chief() const {
  const auto& own = ground_.options.scaffold.saver.key;
  std::string secret;
  if (ground_.comm.is_chief() && own) {
    const auto bytes = own->secret();
    secret.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  secret = ground_.start.broadcast_text(secret);
  if (secret.empty() || ground_.comm.is_chief()) return secret.empty() ? nullptr : own;
  const auto bytes = std::as_bytes(std::span(secret));
  return std::make_shared<const MacKey>(std::vector<std::byte>(bytes.begin(), bytes.end()));
}

ShardedSaves HookedSession::shards_of(ShardPlan& plan, const ShardWord& word) {
  SessionConfig& config = ground_.config;
  const SaverOptions& options = ground_.options.scaffold.saver;
  const auto key = key_of_chief();
  ShardedSaves shards{ground_.comm, nullptr, word.nonce};
  ground_.together("", [&] {
    if (!plan.mine) return;
    auto directory = ground_.directory
                         ? ground_.directory->directory()
                         : std::shared_ptr(config.files->open_directory(ground_.options.checkpoint_dir));
    shards.writer =
        std::make_shared<ShardWriter>(std::move(directory), std::move(plan.cut.shards[*plan.mine]),
                                      ShardWriter::Options{options.basename, static_cast<int>(*plan.mine),
                                                           word.token, options.verify_after_write, key},
                                      *config.clock, *config.executor);
  });
  return shards;
}

/// Once it is sure that the run begins: one that is refused leaves no file.
void HookedSession::open_summaries() {
  if (ground_.options.summary_dir.empty() || std::exchange(summaries_open_, true)) return;
  ground_.on_chief("the chief to open its event file", "", [&] {
    summary_ = SummaryWriter(
        std::make_unique<EventWriter>(ground_.config.files->create_directory(ground_.options.summary_dir),
                                      *ground_.config.clock, ground_.config.process->host()),
        ground_.log);
  });
}

void HookedSession::release_saver() {
  if (saver_) saver_->tell_results(*this);
  if (saver_) saver_->attach(nullptr, std::nullopt);
}

void HookedSession::detach() {
  release_saver();
  session_ = nullptr;
  coordinator_ = nullptr;
}

std::string HookedSession::phase() const {
  return hook_ == nullptr ? std::string(phase_) : fmt::format("{} of '{}'", phase_, hook_->name());
}

/// Calls a hook; in a profile the time is its own.
template <class Work>
void HookedSession::call(SessionRunHook& hook, Work&& work) {
  hook_ = &hook;
  if (ground_.trace.on()) {
    const auto phase = ground_.trace.phase(hook.name());
    work();
  } else {
    work();
  }
  hook_ = nullptr;
}

/// All ranks are here, after a tally without errors or ends: what they asked for in `gather` can be sent.
void HookedSession::deliver_gathered(Failure& failure) {
  if (gathers_.empty()) return;
  for (const auto& [text, deliver] : std::exchange(gathers_, {})) {
    const std::vector<std::string> texts = ground_.comm.all_gather_text(text);
    try {
      if (ground_.comm.is_chief()) deliver(texts);
    } catch (...) {
      if (!failure) failure = current_failure("what a hook gathered", global_step());
    }
  }
}

/// A rank whose input ended in `after_run` did not call the hooks behind, so others may have asked for more.
void HookedSession::drop_partly_gathered() {
  struct Asked {
    std::size_t least;
    std::size_t most;
  };
  const Asked asked =
      fold_ranks(ground_.comm, "all ranks to say what their hooks gather",
                 Asked{gathers_.size(), gathers_.size()}, [](const Asked& left, const Asked& right) {
                   return Asked{std::min(left.least, right.least), std::max(left.most, right.most)};
                 });
  if (asked.least == asked.most) return;
  ground_.log.warn("what hooks gathered in the last step is left out: on some rank the input ended before");
  gathers_.clear();
}

/// Slots or residuals lie on several nodes.
bool HookedSession::state_in_parts() const {
  return ground_.config.shard_optimizer || ground_.config.gradient_dtype == GradientDtype::bf16;
}

/// Before a save, on all ranks: whether there is one follows from what all know.
void HookedSession::gather_parts() {
  if (!state_in_parts() || gathered_step_ == global_step() || saver_->writes_shards()) return;
  gathered_step_ = global_step();
  session_->gather_parts();
}

StepValues HookedSession::run(const RawSession::Step& step, const Feeds& feeds) {
  CreatedSession& session = *session_;
  StepValues values;
  session.begin_step(CreatedSession::Voice::full, feeds);
  session.attempt(
      [&] {
        phase_ = "before_run";
        for (const auto& hook : hooks_) {
          call(*hook, [&] { hook->before_run(*this); });
        }
        phase_ = "the step";
        const auto traced = ground_.trace.phase("step");
        values = step(session);
      },
      [&] { return phase(); });
  hook_ = nullptr;
  phase_ = "the program";
  const CreatedSession::Ended ended = session.complete_step(values, true);
  dropped_ = !ended.ran;
  if (dropped_) hear_end(ended);
  heed(session.tally());
  heard_between_ = false;
  Failure failure = session.late_failure();
  std::optional<EndedBy> end;
  // Even if this rank has failed since its ballot left: the others do not know and wait for its texts.
  if (ended.ran) deliver_gathered(failure);
  if (ended.ran && saver_ && saver_->saves_after(global_step(), session.tally())) gather_parts();
  if (ended.ran && !failure) {
    const RunValues run_values(values, session.tally(), global_step());
    phase_ = "after_run";
    try {
      for (SessionRunHook* hook : after_run_order_) {
        call(*hook, [&] { hook->after_run(*this, run_values); });
      }
    } catch (const EndOfInput& error) {
      end = {error.what(), phase()};
    } catch (...) {
      failure = current_failure(phase(), global_step());
    }
    hook_ = nullptr;
    phase_ = "the program";
  }
  if (ended.ran && !failure && ground_.kept) ground_.kept->complete(global_step());
  leave_if_a_thread_is_lost();
  if (failure) session.tell_late(failure);
  if (end) tell_late_end(*end);
  return ended.ran ? values : StepValues();
}

void HookedSession::run_step_fn(const std::function<void(StepFnContext&)>& step_fn) {
  CreatedSession& session = *session_;
  StepFn context(*this);
  heard_between_ = false;
  input_ended_ = false;
  Failure failure;
  std::optional<EndedBy> end;
  phase_ = "the step function";
  try {
    step_fn(context);
  } catch (const EndOfInput& error) {
    end = {error.what(), "the step function"};
  } catch (...) {
    phase_ = "the step function";
    failure = current_failure(phase(), global_step());
  }
  phase_ = "the program";
  // First what all ranks know already.
  if (session.take_news()) end.reset();
  leave_if_a_thread_is_lost();
  if (failure) session.tell_late(failure);
  // Whoever heard the stop from a step with hooks runs no other.
  if (end && (!stopping_ || heard_between_ || context.asked)) tell_late_end(*end);
}

/// Adds what is not known before the ballot leaves: signals, timers, wishes, threads that failed.
void HookedSession::speak(Tally& ballot) {
  speak_between(ballot);
  if (wants_save_) ballot.say(Says::save);
  if (!ground_.comm.is_chief() || (timers_.empty() && chief_timers_.empty())) return;
  const Seconds now = ground_.config.clock->now();
  for (std::size_t i = 0; i < timers_.size(); ++i) {
    if (timers_[i]->seconds_passed(now)) ballot.set_timer(static_cast<int>(i));
  }
  for (std::size_t i = 0; i < chief_timers_.size(); ++i) {
    if (chief_timers_[i]->seconds_passed(now)) ballot.set_timer(kMaxTimers - 1 - static_cast<int>(i));
  }
}

/// Of these whatever ends the run: a step function may never run a step with hooks.
void HookedSession::speak_between(Tally& ballot) {
  const SessionConfig& config = ground_.config;
  if (const auto signal = config.signals->received()) ballot.set_signal(*signal);
  if (coordinator_->should_stop()) {
    if (coordinator_->failure()) {
      ballot.say(Says::thread_failed);
    } else if (wish_.empty()) {
      wish_ = coordinator_->reason();
      if (wish_.empty()) wish_ = "no reason given";
      wish_by_ = "a thread";
    }
  }
  if (!wish_.empty()) ballot.say(Says::stop);
  if (time_limit_ && time_limit_->reached(config.clock->now(), saver_ ? saver_->slow_save() : Seconds{0})) {
    if (!out_of_time_) ground_.log.info(time_limit_->describe());
    out_of_time_ = true;
    ballot.say(Says::stop);
  }
}

/// What the step function still does, it does.
void HookedSession::hear_between(const CreatedSession::Ended& ended, const Tally& tally) {
  if (!ended.ran) hear_end(ended);
  if (saver_) saver_->hear(tally);
  heed_stops(tally);
  heard_between_ = stopping_;
}

/// The others are in a step, or close; what they do with its tally is done here, too.
void HookedSession::tell_late_end(EndedBy end) {
  hear_end(session_->tell_late_end(std::move(end)));
  heed(session_->tally());
  leave_if_a_thread_is_lost();
}

/// Wins over every other cause. Whoever ended late may have missed what stopped the others in the same step,
/// and ranks that have different causes would end in different ways.
void HookedSession::hear_end(const CreatedSession::Ended& ended) {
  const bool alone = ended.rank != StopCause::kAll;
  stopping_ = input_ended_ = true;
  cause_ = {.reason = fmt::format("{} on {}", ended.reason,
                                  alone ? fmt::format("rank {}", ended.rank) : std::string("all ranks")),
            .by = ended.by,
            .rank = ended.rank,
            .step = global_step(),
            .early = false};
}

void HookedSession::require_input() const {
  if (input_ended_) throw EndOfInput(cause_.reason);
}

void HookedSession::heed(const Tally& tally) {
  // Ranks that close hear nothing before all do.
  if (tally.anyone_says(Says::closing)) return;
  for (std::size_t i = 0; i < timers_.size(); ++i) timers_[i]->agree(tally.timer(static_cast<int>(i)));
  for (std::size_t i = 0; i < chief_timers_.size(); ++i) {
    chief_timers_[i]->agree(tally.timer(kMaxTimers - 1 - static_cast<int>(i)));
  }
  if (tally.anyone_says(Says::save)) {
    wants_save_ = false;
    if (!saver_ && !std::exchange(warned_of_no_saver_, true)) {
      ground_.log.warn("save_now() saves nothing: the session has no CheckpointSaverHook");
    }
  }
  if (saver_) saver_->hear(tally);
  heed_stops(tally);
}

void HookedSession::heed_stops(const Tally& tally) {
  // Ranks that close hear nothing before all do.
  if (tally.anyone_says(Says::closing)) return;
  if (tally.anyone_says(Says::signal)) {
    const int who = tally.first_rank(Says::signal);
    set_stopping({.reason = fmt::format("{} on rank {}", signal_name(tally.signal()), who),
                  .by = "a signal",
                  .rank = who,
                  .step = global_step(),
                  .early = true});
  }
  if (tally.anyone_says(Says::stop)) {
    const int who = tally.first_rank(Says::stop);
    set_stopping(cause_of_wish(who));
  }
  if (tally.anyone_says(Says::thread_failed)) {
    try {
      agree(ground_.comm, thread_failure_here());
    } catch (const AgreedFailure& failure) {
      thread_failure_ = failure;
      stop_for_error(failure);
    }
  }
}

/// What that rank's ballot meant by `stop`. Collective.
StopCause HookedSession::cause_of_wish(int who) const {
  const bool early = wish_.empty() && out_of_time_;
  const std::string mine = early ? fmt::format("1the time limit\n{}", time_limit_->name())
                                 : fmt::format("0{}\n{}", wish_by_, wish_);
  const std::string text = ground_.comm.broadcast_text(mine, who);
  const std::size_t cut = text.find('\n');
  return {.reason = text.substr(cut + 1) + (who == 0 ? "" : fmt::format(" (asked by rank {})", who)),
          .by = text.substr(1, cut - 1),
          .rank = who,
          .step = global_step(),
          .early = text.front() == '1'};
}

void HookedSession::heed_wishes() {
  const Tally& tally = session_->tally();
  if (!tally.anyone_says(Says::stop)) return;
  StopCause cause = cause_of_wish(tally.first_rank(Says::stop));
  if (!cause.early) cause_ = std::move(cause);
}

Failure HookedSession::lost_thread() const {
  Failure failure = thread_failure_here();
  return is_aborted(failure.error) ? failure : Failure();
}

Failure HookedSession::thread_failure_here() const {
  const std::exception_ptr error = coordinator_->failure();
  if (!error) return {};
  const std::string thread = coordinator_->failed_thread();
  try {
    std::rethrow_exception(error);
  } catch (...) {
    return current_failure(thread.empty() ? "a thread" : fmt::format("thread '{}'", thread), global_step());
  }
}

/// All ranks have heard of it, but not all need be at the same place: those that are still in a step function
/// hear of it again in their next step. What else one of them threw says less.
void HookedSession::leave_if_a_thread_is_lost() {
  if (!recovers_ || !thread_failure_ || !thread_failure_->recoverable) return;
  session_->tell_late({thread_failure_->error, thread_failure_->phase, thread_failure_->step});
}

void HookedSession::raise_thread_failure() {
  if (session_->tally().anyone_says(Says::thread_failed)) agree(ground_.comm, thread_failure_here());
}

void HookedSession::agree_on(SecondOrStepTimer& timer) {
  if (!in_begin_) throw UsageError("timers are registered in begin()");
  timer.use_clock(ground_.config.clock);
  agreed_timers_.push_back(&timer);
  if (!timer.has_seconds()) return;
  // Timers of chief-only hooks take bits from the other end, so that the bits of the rest agree on all ranks.
  auto& timers = begun_ < chief_only_count_ ? chief_timers_ : timers_;
  if (timers_.size() + chief_timers_.size() == kMaxTimers) {
    throw UsageError(
        fmt::format("more than {} timers in seconds; use intervals in steps for some", kMaxTimers));
  }
  timer.agree(false);
  timers.push_back(&timer);
}

void HookedSession::request_stop(std::string_view reason) {
  if (!wish_.empty()) return;
  wish_ = reason.empty() ? "no reason given" : reason;
  wish_by_ = hook_ != nullptr ? hook_->name() : phase_;
}

void HookedSession::request_stop_all(std::string_view reason) {
  require_all_ranks("says that all ranks stop, who do not know; use request_stop");
  set_stopping({.reason = std::string(reason),
                .by = std::string(hook_ != nullptr ? hook_->name() : phase_),
                .rank = StopCause::kAll,
                .step = global_step(),
                .early = false});
}

/// Not in a hook of the chief alone.
void HookedSession::require_all_ranks(std::string_view problem) const {
  const auto chief_only = std::span(hooks_).first(std::min(chief_only_count_, hooks_.size()));
  if (hook_ == nullptr ||
      std::ranges::none_of(chief_only, [&](const auto& hook) { return hook.get() == hook_; })) {
    return;
  }
  throw UsageError(fmt::format("'{}' is a hook of the chief alone and {}", hook_->name(), problem));
}

void HookedSession::gather(std::string text, Deliver deliver) {
  require_all_ranks("gathers from all ranks, who do not; give it in `hooks` on every rank");
  gathers_.emplace_back(std::move(text), std::move(deliver));
}

Coordinator& HookedSession::coordinator() {
  if (coordinator_ == nullptr) {
    throw UsageError("the session has no coordinator before after_create_session");
  }
  return *coordinator_;
}

void HookedSession::set_stopping(StopCause cause) {
  // A run that is complete is complete, though a signal or the time limit came before its last step was over.
  const bool completes = stopping_ && cause_.early && !cause.early;
  if (stopping_ && !completes) return;
  stopping_ = true;
  cause_ = std::move(cause);
}

void HookedSession::stop_for_error(const AgreedFailure& failure) {
  stopping_ = true;
  cause_ = {.reason = failure.what(),
            .by = failure.phase,
            .rank = failure.rank,
            .step = global_step(),
            .early = false};
  try {
    std::rethrow_exception(failure.error);
  } catch (const std::exception& error) {
    cause_.reason = error.what();
  }
}

void HookedSession::stop_for_loss(const std::exception& error) {
  stopping_ = true;
  cause_ = {.reason = error.what(),
            .by = "a wait for other ranks",
            .rank = StopCause::kAll,
            .step = global_step(),
            .early = false};
}

void HookedSession::forget_stop() {
  stopping_ = false;
  cause_ = {};
  thread_failure_.reset();
  gathers_.clear();
  input_ended_ = heard_between_ = false;
  // A rank that failed in a step has not seen what the others did after it.
  for (SecondOrStepTimer* timer : agreed_timers_) timer->reset();
  ground_.trace.stop();
}

Failure HookedSession::end(Seconds grace) {
  Failure failure;
  const auto guarded = [&](auto&& work) {
    try {
      work();
    } catch (...) {
      // The other hooks still end, and the final save is still made.
      if (!failure) failure = current_failure(phase(), global_step());
    }
    hook_ = nullptr;
  };
  drop_partly_gathered();
  deliver_gathered(failure);
  if (saver_) gather_parts();
  phase_ = "end";
  // After a signal little time may be left: what there is goes to disk before hooks take their time to end.
  const bool early = cause_.early;
  if (early && saver_) guarded([&] { saver_->save_and_wait(*this); });
  const bool saves = saver_ && (ground_.comm.is_chief() || saver_->writes_shards());
  const Digest before = saves ? saver_->content_here(*this) : Digest{};
  const Seconds deadline = ground_.config.clock->now() + grace;
  // A save on a slow disk may have taken the chief longer than any step.
  const double limit = ground_.comm.policy().limit.count();
  const Communicator waiting = patient(ground_.comm, limit == 0 ? 0 : limit + grace.count());
  for (std::size_t i = 0; i < hooks_.size(); ++i) {
    if (hooks_[i]->looks_last()) continue;
    std::uint8_t in_time = !early || ground_.config.clock->now() < deadline ? 1 : 0;
    // The chief's clock decides.
    if (early && i >= chief_only_count_) waiting.broadcast_values(std::span(&in_time, 1));
    hook_ = hooks_[i].get();
    if (in_time != 0) {
      guarded([&] { hooks_[i]->end(*this); });
    } else {
      ground_.log.warn(fmt::format("the grace period of {} s is over: the end of '{}' is left out",
                                   grace.count(), hooks_[i]->name()));
    }
  }
  if (saves) {
    bool changed = saver_->content_here(*this) != before;
    if (saver_->writes_shards()) {
      changed = fold_ranks(ground_.comm, "all ranks to say whether something has changed", changed,
                           std::logical_or<>());
    }
    if (changed) saver_->save_again();
  }
  for (const auto& hook : hooks_) {
    if (!hook->looks_last()) continue;
    hook_ = hook.get();
    guarded([&] { hook->end(*this); });
  }
  phase_ = "the program";
  drop_partly_gathered();
  deliver_gathered(failure);
  summary_.flush();
  return failure;
}

void HookedSession::tell_error(const std::exception& error) {
  for (std::size_t i = 0; i < hooks_.size() && i <= begun_; ++i) {
    try {
      hooks_[i]->on_error(*this, error);
    } catch (...) {
      ground_.log.error(fmt::format("on_error of {} threw; it must not", hooks_[i]->name()));
    }
  }
}

}  // namespace lockstep
