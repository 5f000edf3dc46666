#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lockstep/hooks/checkpoint_saver.hpp>
#include <lockstep/hooks/session_run_hook.hpp>
#include <lockstep/session/coordinator.hpp>
#include <lockstep/session/step_fn_context.hpp>
#include <lockstep/session/stop_cause.hpp>
#include <lockstep/session/time_limit.hpp>

#include "created_session.hpp"
#include "shard_plan.hpp"

namespace lockstep {

/// The hooks around the steps, and what they and the program have asked for. Lives through all recoveries:
/// `open` binds it to a session that was just made.
class HookedSession final : public RunContext, public CreatedSession::Owner {
 public:
  using Hooks = std::vector<std::shared_ptr<SessionRunHook>>;

  /// `recovers`: a thread that was lost makes the call fail in which all ranks hear of it; else it only
  /// stops the session.
  HookedSession(SessionGround& ground, Hooks hooks, Hooks chief_only_hooks, bool recovers);

  /// What all ranks must agree on. Throws UsageError for hooks that make no sense. Local.
  std::string describe() const;

  /// `begin` of all hooks. Throws AgreedFailure. Collective.
  void begin();

  /// Binds to a new session; calls `ready` and then after_create_session. Throws AgreedFailure. Collective.
  void open(CreatedSession& session, Coordinator& coordinator, const std::function<void()>& ready);

  /// Lets go of the session.
  void detach();

  /// Waits for a save that is still being written, and lets go of the directory. Local.
  void release_saver();

  /// One step with all hooks. Throws AgreedFailure, and DeadlineExceeded where a rank is missing. Collective.
  StepValues run(const RawSession::Step& step, const Feeds& feeds);

  /// All or nothing that `step_fn` does. Throws as `run`. Collective.
  void run_step_fn(const std::function<void(StepFnContext&)>& step_fn);

  /// What hooks gather, `end` of all hooks, and the final save. Returns the failure of this rank, if any.
  /// Collective.
  Failure end(Seconds grace);

  void tell_error(const std::exception& error);

  bool stopping() const noexcept { return stopping_; }
  const StopCause& cause() const noexcept { return cause_; }
  void set_stopping(StopCause cause);
  void stop_for_error(const AgreedFailure& failure);

  /// A rank is missing. Local.
  void stop_for_loss(const std::exception& error);

  /// A session that is made anew runs again.
  void forget_stop();

  /// After the closing ballot of a session that the program closes: some rank may have asked to stop, untold.
  /// Collective.
  void heed_wishes();

  /// That of a thread, since all ranks have heard of it.
  const std::optional<AgreedFailure>& thread_failure() const noexcept { return thread_failure_; }

  /// Throws AgreedFailure if a thread of this rank or another one has failed, by the tally of the close.
  void raise_thread_failure();

  const Hooks& hooks() const noexcept { return hooks_; }

  // RunContext
  int rank() const override { return ground_.comm.rank(); }
  int ranks() const override { return ground_.comm.size(); }
  State& state() override { return ground_.state; }
  std::int64_t global_step() const override { return ground_.state.global_step(); }
  const Clock& clock() const override { return *ground_.config.clock; }
  const Log& log() const override { return ground_.log; }
  SummaryWriter& summary() override { return summary_; }
  void agree_on(SecondOrStepTimer& timer) override;
  void request_stop(std::string_view reason) override;
  void request_stop_all(std::string_view reason) override;
  bool stop_requested() const override { return stopping_ || !wish_.empty(); }
  void save_now() override { wants_save_ = true; }
  const Topology& topology() const override { return *ground_.topology; }
  Feeds& feeds() override { return session_->feeds(); }
  StepTrace& trace() override { return ground_.trace; }
  void gather(std::string text, Deliver deliver) override;
  Coordinator& coordinator() override;

  // CreatedSession::Owner
  void speak(Tally& ballot) override;
  void speak_between(Tally& ballot) override;
  void speak_of_shards(Tally& ballot) override {
    if (saver_) saver_->speak(ballot);
  }
  void hear_between(const CreatedSession::Ended& ended, const Tally& tally) override;
  void hear_end(const CreatedSession::Ended& ended) override;
  void require_input() const override;
  Failure lost_thread() const override;

 private:
  class StepFn;

  void find_saver();
  /// What the chief says of shards to all.
  struct ShardWord {
    std::uint64_t sharded = 0;
    std::uint64_t token = 0;
    std::uint64_t nonce = 0;
  };

  void attach_saver();
  std::optional<ShardPlan> plan_shards(ShardWord& word);
  std::shared_ptr<const MacKey> key_of_chief() const;
  ShardedSaves shards_of(ShardPlan& plan, const ShardWord& word);
  void set_time_limit();
  void open_summaries();
  void heed(const Tally& tally);
  void heed_stops(const Tally& tally);
  void drop_partly_gathered();
  void deliver_gathered(Failure& failure);
  bool state_in_parts() const;
  void gather_parts();
  template <class Work>
  void call(SessionRunHook& hook, Work&& work);
  void tell_late_end(EndedBy end);
  StopCause cause_of_wish(int who) const;
  void require_all_ranks(std::string_view problem) const;
  std::string phase() const;
  Failure thread_failure_here() const;
  void leave_if_a_thread_is_lost();

  SessionGround& ground_;
  Hooks hooks_;
  std::vector<SessionRunHook*> after_run_order_;  ///< the same, those that look last behind the others
  std::size_t chief_only_count_ = 0;
  bool recovers_;
  std::size_t begun_ = 0;  ///< hooks whose `begin` has returned
  std::shared_ptr<CheckpointSaverHook> saver_;
  std::vector<SecondOrStepTimer*> timers_;
  std::vector<SecondOrStepTimer*> chief_timers_;
  std::vector<SecondOrStepTimer*> agreed_timers_;  ///< all that hooks have registered
  bool in_begin_ = false;
  std::optional<std::int64_t> gathered_step_;  ///< the chief's node has all parts of this step's state
  SummaryWriter summary_;
  bool summaries_open_ = false;  ///< the same on all ranks
  CreatedSession* session_ = nullptr;
  Coordinator* coordinator_ = nullptr;

  // Where we are, for messages.
  std::string_view phase_ = "the program";
  const SessionRunHook* hook_ = nullptr;  ///< being called

  std::string wish_;  ///< this rank asks to stop: why
  std::string wish_by_;
  bool out_of_time_ = false;
  std::optional<TimeLimit> time_limit_;  ///< chief only
  bool wants_save_ = false;
  std::vector<std::pair<std::string, Deliver>> gathers_;  ///< asked for by hooks, not yet sent
  std::optional<AgreedFailure> thread_failure_;           ///< of any rank, since all heard of it

  bool stopping_ = false;
  bool dropped_ = false;      ///< the newest step with hooks was, since the input ended
  bool input_ended_ = false;  ///< heard in the step function under way
  bool warned_of_no_saver_ = false;
  bool heard_between_ = false;  ///< the stop was heard in a step without hooks of the step function under way
  StopCause cause_;
};

}  // namespace lockstep
