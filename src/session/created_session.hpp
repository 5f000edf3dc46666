#pragma once

#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/restore.hpp>
#include <lockstep/session/raw_session.hpp>
#include <lockstep/session/step_context.hpp>

#include "failure.hpp"
#include "session_ground.hpp"

namespace lockstep {

/// Thrown through a step when the tally says that nobody goes on with it. Not an Error: no user code should
/// catch it.
struct StepAbandoned {};

/// An EndOfInput of this rank.
struct EndedBy {
  std::string reason;
  std::string phase;  ///< what threw it
};

/// One step of all ranks: the reduction, and the ballot that travels with it. In turn: `begin_step`;
/// `attempt` what the user does; `complete_step`, after which all ranks know how it went.
class CreatedSession final : public RawSession, public StepContext {
 public:
  explicit CreatedSession(SessionGround& ground);

  void set_restored(std::optional<Restored> restored) { restored_ = std::move(restored); }
  const std::optional<Restored>& restored() const noexcept { return restored_; }
  const Reducer& reducer() const noexcept { return *reducer_; }
  const Tally& tally() const noexcept { return tally_; }

  /// How a step ended, the same on all ranks.
  struct Ended {
    bool ran = true;     ///< false: dropped, since the input ended
    std::string reason;  ///< of an end
    std::string by;      ///< what threw it: "the step"
    int rank = 0;        ///< that told the end first, or StopCause::kAll
  };

  /// Whoever the steps are for: adds to a ballot what is not known before it leaves.
  class Owner {
   public:
    virtual ~Owner() = default;
    virtual void speak(Tally& ballot) = 0;

    /// Every ballot does, whatever it is for.
    virtual void speak_of_shards(Tally& ballot) = 0;

    /// The same in a step without hooks; and what came of that, unless it failed. Collective.
    virtual void speak_between(Tally& ballot) = 0;
    virtual void hear_between(const Ended& ended, const Tally& tally) = 0;

    /// Some rank's input ended after its step had reduced; heard by ranks that close. The same on all.
    virtual void hear_end(const Ended& ended) = 0;

    /// Throws EndOfInput in a step function that has heard of an end.
    virtual void require_input() const = 0;

    /// A thread of this rank that was lost. A step that fails then fails for that, whatever it threw.
    virtual Failure lost_thread() const = 0;
  };

  /// Who that is; until then nobody.
  void set_owner(Owner& owner) noexcept { owner_ = &owner; }

  /// What the ballot of a step says beside how the step went.
  enum class Voice { none, between, full };

  /// Local.
  void begin_step(Voice voice, const Feeds& feeds = {});

  Feeds& feeds() noexcept { return feeds_; }

  /// Runs what may throw on this rank alone, in the phase that `phase()` then names; what it throws is told
  /// in complete_step. Throws only DeadlineExceeded, where a rank is missing.
  template <class Work, class Phase>
  void attempt(Work&& work, Phase&& phase) {
    try {
      work();
    } catch (const StepAbandoned&) {
      // The tally says why.
    } catch (const EndOfInput& end) {
      end_input(end.what(), phase());
    } catch (...) {
      failure_ = current_failure(phase(), state_.global_step());
    }
    if (lost_) std::rethrow_exception(lost_);
  }

  /// Brings the step to a state in which all ranks know how it went; the values become the reduced ones, and
  /// the global step moves on if it `counts`. Throws AgreedFailure if any rank failed before the ballots.
  /// Collective.
  Ended complete_step(StepValues& values, bool counts);

  /// What this rank threw after the ballot of its step had left. To be told with tell_late once all that
  /// follows from the tally is done.
  const Failure& late_failure() const noexcept { return failure_; }

  /// Tells a failure, or an end of input, that came after the ballot of its step: the others hear of it in
  /// their next collective, be that of a step or of the close. The first throws AgreedFailure. Collective.
  [[noreturn]] void tell_late(Failure failure);
  Ended tell_late_end(EndedBy end);

  /// What steps without hooks threw at whoever called for them, whatever became of it there: throws a failure
  /// or a lost rank, and returns true for an end of input.
  bool take_news();

  /// The same without taking them, and what is found out elsewhere in a step function: whoever catches it and
  /// goes on must not meet others who have left.
  void throw_news() const;
  void keep_news(const AgreedFailure& failure) { failed_ = failure; }
  void keep_news(std::exception_ptr lost) { lost_ = std::move(lost); }

  /// What of slots and kept arenas lies on other nodes comes together on the chief's. Collective.
  void gather_parts();

  /// A ballot of ranks that close. On return all do. Throws AgreedFailure. Collective.
  void agree_to_close();

  // RawSession
  State& state() override { return state_; }
  int rank() const override { return ground_.comm.rank(); }
  int ranks() const override { return ground_.comm.size(); }
  std::int64_t global_step() const override { return state_.global_step(); }
  StepValues run(const Step& step) override;

  // StepContext
  std::int64_t number() const override { return state_.global_step(); }
  const Feeds& feeds() const override { return feeds_; }
  StepTrace& trace() override { return ground_.trace; }
  std::span<const float> reduce(std::span<const float> gradients, StepValues& local) override;
  void contribute_nothing() override;
  int contributing_ranks() const override { return tally_.contributors(); }
  std::int64_t contributing_micro_batches() const override { return tally_.micro_batches(); }
  MicroBatchRange micro_batches() const override { return reducer_->micro_batches(); }
  std::int64_t micro_batches_in_step() const override { return micro_batches_; }
  std::span<float> begin_micro_batch() override;
  void gradient_ready(std::size_t offset) override;
  void end_micro_batch() override;
  void say_not_finite() override { ballot_.say(Says::not_finite); }
  void reduce_micro_batches() override;
  ElementRange slice() const override;
  ElementRange buffer_slice() const override;
  bool shares_parameters() const override { return ground_.config.share_parameters; }
  std::span<const float> sum() const override { return reducer_->sum(); }
  void finish() override;
  bool anyone_finished() const override { return reducer_->anyone_finished(); }

 private:
  void end_input(std::string reason, std::string phase);
  Ended hear_end_of_input() const;
  void set_ballot_values(const StepValues& values);
  void send_ballot(bool with_sum);
  void spoil_my_slice();
  void agree_on_failure() const;
  [[noreturn]] void fail_in_disagreement() const;

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

  SessionGround& ground_;
  State& state_;
  std::unique_ptr<Reducer> reducer_;
  bool buffers_apart_ = false;      ///< sums for buffers are whole on every node; see ReducerOptions' values
  std::int64_t micro_batches_ = 0;  ///< of a step, over all ranks
  std::optional<Restored> restored_;
  Owner* owner_ = nullptr;
  bool reduces_ = false;  ///< the last step reduced gradients; before the first, a guess

  // Of the step under way.
  Voice voice_ = Voice::none;
  Feeds feeds_;
  Tally ballot_;
  Tally tally_;
  bool ballot_sent_ = false;
  bool unfinished_ = false;  ///< has reduced and not called finish
  bool abstains_ = false;
  std::int64_t micro_batches_done_ = 0;
  Failure failure_;
  std::optional<EndedBy> end_;  ///< this rank's input ended, or it wants no step
  std::exception_ptr lost_;     ///< a wait reached its limit

  // Of steps without hooks.
  bool ended_ = false;
  std::optional<AgreedFailure> failed_;
};

}  // namespace lockstep
