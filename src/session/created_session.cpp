#include "created_session.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include <fmt/format.h>

#include <lockstep/session/stop_cause.hpp>

namespace lockstep {
namespace {

/// In place of the names of a step's values: this rank does not run a step, it closes.
constexpr std::uint64_t kClosing = 0x636c6f73696e67;

}  // namespace

CreatedSession::CreatedSession(SessionGround& ground) : ground_(ground), state_(ground.state) {
  // A guess until the first step has shown it: a rank that fails in that step must meet the others'
  // reduction.
  reduces_ = state_.gradient_elements() > 0;
  const std::int64_t wanted = ground.config.micro_batches;
  micro_batches_ = wanted == 0 ? ground.comm.size() : wanted;
  const bool rounds = ground.config.gradient_dtype == GradientDtype::bf16;
  if ((ground.config.shard_optimizer || rounds) && !ground.config.share_parameters) {
    throw UsageError(fmt::format("{} for parameters that the ranks of a node share; set share_parameters",
                                 rounds ? "bf16 gradients are" : "shard_optimizer is"));
  }
  if ((ground.config.shard_optimizer || rounds) && ground.config.reduction == ReductionKind::mpi) {
    throw UsageError(fmt::format("{} for the canonical reduction; use that",
                                 rounds ? "bf16 gradients are" : "shard_optimizer is"));
  }
  ReducerOptions options{.bucket_bytes = ground.config.bucket_bytes};
  std::size_t elements = state_.gradient_elements();
  // Nothing is sharded or rounded inside a node.
  buffers_apart_ = (ground.config.shard_optimizer || rounds) && ground.topology->nodes > 1;
  if (buffers_apart_) {
    options.shard = ground.config.shard_optimizer;
    if (options.shard) options.parameters = state_.parameters();
    if (ground.kept && ground.kept->copies_shards()) {
      options.before_spread = [kept = ground.kept.get()] { kept->pass_on(); };
    }
    if (!state_.kept_arenas().empty()) {
      options.residual = state_.kept_arenas()[static_cast<std::size_t>(ground.topology->my_node)];
    }
    // What is added to buffers is no gradient: every node updates all of its buffers, from sums that are not
    // rounded.
    elements = state_.parameter_elements();
    options.values = state_.gradient_elements() - elements + kMicroBatchValues;
  }
  reducer_ = make_reducer(ground.config.reduction, *ground.topology, elements, micro_batches_, options);
}

void CreatedSession::begin_step(Voice voice, const Feeds& feeds) {
  voice_ = voice;
  feeds_ = feeds;
  ballot_ = Tally(rank());
  ballot_sent_ = false;
  unfinished_ = false;
  abstains_ = false;
  micro_batches_done_ = 0;
  failure_.error = nullptr;
  end_.reset();
}

void CreatedSession::end_input(std::string reason, std::string phase) {
  if (!ballot_sent_) {
    end_ = {std::move(reason), std::move(phase)};
    return;
  }
  failure_ = {std::make_exception_ptr(UsageError(
                  "a step threw EndOfInput after it had reduced, when the others could no longer drop the "
                  "step; look for data before reducing")),
              std::move(phase), state_.global_step()};
}

void CreatedSession::set_ballot_values(const StepValues& values) {
  std::array<double, kMaxValues> numbers;
  std::size_t count = 0;
  for (const auto& value : values.all()) {
    if (!abstains_ && !std::isfinite(value.value)) ballot_.say(Says::not_finite);
    numbers[count++] = value.value;
  }
  ballot_.set_values({numbers.data(), count}, values.names_digest());
}

/// `with_sum`: in the shape of a reduction, whatever there is to sum. Ranks whose next collectives meet must
/// use one shape, or their messages between nodes do not fit: so once a session reduces, ballots of errors,
/// of ends and of the close have that shape, too.
void CreatedSession::send_ballot(bool with_sum) {
  if (owner_ != nullptr) owner_->speak_of_shards(ballot_);
  if (owner_ != nullptr && voice_ == Voice::full) owner_->speak(ballot_);
  if (owner_ != nullptr && voice_ == Voice::between) owner_->speak_between(ballot_);
  if (!abstains_) ballot_.set_micro_batches(micro_batches_done_);
  ballot_sent_ = true;
  const auto phase = ground_.trace.phase("reduce");
  tally_ = in_contact([&] { return with_sum ? reducer_->reduce(ballot_) : reducer_->exchange(ballot_); });
  ground_.trace.meet();
}

void CreatedSession::fail_in_disagreement() const {
  // All ranks have the same tally, so all come here.
  AgreedFailure failure("ranks disagree");
  failure.step = state_.global_step();
  failure.message = fmt::format(
      "ranks disagree after step {}: some reduce gradients, some do not, or close, or they return "
      "values of different names; every rank must run the same steps",
      state_.global_step());
  failure.error = std::make_exception_ptr(EnvironmentError(failure.message));
  throw AgreedFailure(std::move(failure));
}

void CreatedSession::agree_on_failure() const {
  // What a rank throws since a thread was lost says less than the loss, which can be recovered from.
  const Failure lost = failure_ && owner_ != nullptr ? owner_->lost_thread() : Failure();
  try {
    agree(ground_.comm, lost ? lost : failure_);
  } catch (AgreedFailure& failure) {
    // Ranks that close cannot take part in a recovery.
    if (tally_.anyone_says(Says::closing)) failure.recoverable = false;
    throw;
  }
}

CreatedSession::Ended CreatedSession::complete_step(StepValues& values, bool counts) {
  const bool alone = !ballot_sent_;
  if (alone) {
    const bool takes_part = !failure_ && !end_;
    if (failure_) {
      ballot_.say(Says::error);
    } else if (end_) {
      ballot_.say(Says::end_of_input);
    } else {
      set_ballot_values(values);
    }
    // A rank that failed before reducing meets the others in their reduction. So does, between nodes, a
    // ballot that is no training step's.
    send_ballot(reduces_ && (!takes_part || (!counts && ground_.topology->nodes > 1)));
  } else {
    if (failure_ && unfinished_ && shares_parameters()) spoil_my_slice();
    finish();
  }
  if (tally_.anyone_says(Says::error)) agree_on_failure();
  if (tally_.anyone_says(Says::end_of_input)) return hear_end_of_input();
  if (!tally_.agrees()) fail_in_disagreement();
  if (tally_.contributors() == 0) return {false, "end of input", "the step", StopCause::kAll};
  if (alone) {
    for (int i = 0; i < tally_.value_count(); ++i) {
      values.all()[static_cast<std::size_t>(i)].value = tally_.value_mean(i);
    }
  }
  if (counts) {
    if (ground_.kept) ground_.kept->heard();
    reduces_ = tally_.elements() > 0;
    state_.set_global_step(state_.global_step() + 1);
  }
  return {};
}

/// From the rank that told it first. Collective.
CreatedSession::Ended CreatedSession::hear_end_of_input() const {
  const int who = tally_.first_rank(Says::end_of_input);
  const std::string text = ground_.comm.broadcast_text(end_ ? end_->phase + '\n' + end_->reason : "", who);
  const std::size_t cut = text.find('\n');
  return {false, text.substr(cut + 1), text.substr(0, cut), who};
}

void CreatedSession::tell_late(Failure failure) {
  begin_step(Voice::none);
  failure_ = std::move(failure);
  StepValues none;
  complete_step(none, false);
  throw InternalError("a failure was told and nobody heard it");
}

CreatedSession::Ended CreatedSession::tell_late_end(EndedBy end) {
  begin_step(Voice::none);
  end_ = std::move(end);
  StepValues none;
  return complete_step(none, false);
}

void CreatedSession::agree_to_close() {
  for (;;) {
    begin_step(Voice::full);
    ballot_.say(Says::closing);
    ballot_.set_values({}, kClosing);
    send_ballot(reduces_);
    if (tally_.anyone_says(Says::error)) agree_on_failure();
    if (!tally_.anyone_says(Says::end_of_input)) break;
    // That rank will close next, too.
    const Ended ended = hear_end_of_input();
    if (owner_ != nullptr) owner_->hear_end(ended);
  }
  if (!tally_.agrees()) fail_in_disagreement();
}

/// This rank failed where it should have updated its slice, and the others do not know yet. Shared parameters
/// that were updated in part must not look like a step: what is not finite is never saved.
void CreatedSession::spoil_my_slice() {
  if (ground_.kept) ground_.kept->spoil_update();
  const auto spoil = [](std::span<float> arena, ElementRange mine) {
    std::ranges::fill(arena.subspan(mine.first, mine.size()), std::numeric_limits<float>::quiet_NaN());
  };
  spoil(state_.parameters(), slice());
  spoil(state_.buffers(), buffer_slice());  // some ranks have no other part
}

StepValues CreatedSession::run(const Step& step) {
  throw_news();
  if (owner_ != nullptr) owner_->require_input();
  StepValues values;
  try {
    begin_step(Voice::between);
    attempt([&] { values = step(*this); }, [] { return std::string("a step without hooks"); });
    const Ended ended = complete_step(values, false);
    if (owner_ != nullptr) owner_->hear_between(ended, tally_);
    if (failure_) tell_late(failure_);
    if (!ended.ran) {
      ended_ = true;
      throw EndOfInput(ended.reason);
    }
    if (ground_.kept) ground_.kept->complete(state_.global_step());
  } catch (const AgreedFailure& failure) {
    failed_ = failure;
    std::rethrow_exception(failure.error);
  } catch (const DeadlineExceeded&) {
    lost_ = std::current_exception();
    throw;
  }
  return values;
}

void CreatedSession::throw_news() const {
  if (lost_) std::rethrow_exception(lost_);
  if (failed_) std::rethrow_exception(failed_->error);
}

bool CreatedSession::take_news() {
  if (lost_) std::rethrow_exception(lost_);
  if (failed_) throw AgreedFailure(*std::exchange(failed_, std::nullopt));
  return std::exchange(ended_, false);
}

std::span<const float> CreatedSession::reduce(std::span<const float> gradients, StepValues& local) {
  if (shares_parameters()) {
    throw UsageError(
        "reduce(gradients) is for parameters of one's own; with share_parameters use begin_micro_batch, "
        "update "
        "slice() and call finish");
  }
  if (reducer_->micro_batches().size() != 1) {
    throw UsageError("reduce(gradients) is for one micro-batch a rank; use begin_micro_batch for others");
  }
  if (!abstains_) {
    if (gradients.size() != state_.parameter_elements()) {
      throw UsageError(
          fmt::format("reduce() got {} gradients (the state has {} parameter elements, padding included)",
                      gradients.size(), state_.parameter_elements()));
    }
    std::ranges::copy(gradients, begin_micro_batch().begin());
    end_micro_batch();
  }
  set_ballot_values(local);
  reduce_micro_batches();
  finish();
  for (int i = 0; i < tally_.value_count(); ++i) {
    local.all()[static_cast<std::size_t>(i)].value = tally_.value_mean(i);
  }
  return reducer_->sum().first(state_.parameter_elements());
}

void CreatedSession::contribute_nothing() {
  if (ballot_sent_ || micro_batches_done_ != 0 || abstains_) {
    throw UsageError("contribute_nothing() comes once, before micro-batches and before reducing");
  }
  // -0 leaves every number that it is added to as it is, +0 too.
  const auto owned = reducer_->micro_batches();
  for (auto m = owned.first; m < owned.last; ++m) {
    std::ranges::fill(begin_micro_batch(), -0.0F);
    end_micro_batch();
  }
  abstains_ = true;
  ballot_.abstain();
}

std::span<float> CreatedSession::begin_micro_batch() {
  if (abstains_)
    throw UsageError("begin_micro_batch() after contribute_nothing(); a rank does one or the other");
  const std::span<float> gradients = [&] {
    const auto phase = ground_.trace.phase("begin");
    return in_contact([&] { return reducer_->begin_micro_batch(); });
  }();
  // Not every step has something to add to buffers.
  std::ranges::fill(gradients.subspan(state_.parameter_elements(), state_.buffers().size()), 0.0F);
  return gradients;
}

void CreatedSession::gradient_ready(std::size_t offset) {
  reducer_->gradient_ready(offset);
}

void CreatedSession::end_micro_batch() {
  reducer_->end_micro_batch();
  ++micro_batches_done_;
}

void CreatedSession::reduce_micro_batches() {
  if (ballot_sent_) throw UsageError("a step reduces twice; sum everything in one go");
  if (micro_batches_done_ != reducer_->micro_batches().size()) {
    throw UsageError(fmt::format("a step reduces after {} micro-batches ({} are this rank's); compute all",
                                 micro_batches_done_, reducer_->micro_batches().size()));
  }
  send_ballot(true);
  if (tally_.anyone_says(Says::error) || tally_.anyone_says(Says::end_of_input) || !tally_.agrees() ||
      tally_.contributors() == 0) {
    throw StepAbandoned{};
  }
  unfinished_ = true;
  if (ground_.kept) ground_.kept->before_update(slice(), buffer_slice());
}

void CreatedSession::gather_parts() {
  for (const std::string& slot : state_.slot_names()) reducer_->gather(state_.slot_values(slot));
  if (!state_.kept_arenas().empty()) reducer_->gather_nodes(state_.kept_arenas());
}

ElementRange CreatedSession::slice() const {
  const std::size_t elements = state_.parameter_elements();
  if (!shares_parameters()) return {0, elements};
  const ElementRange slice = reducer_->slice();
  return {std::min(slice.first, elements), std::min(slice.last, elements)};
}

ElementRange CreatedSession::buffer_slice() const {
  const std::size_t buffers = state_.buffers().size();
  if (!shares_parameters()) return {0, buffers};
  if (buffers_apart_) {
    const Communicator& node = ground_.topology->node;
    const auto cut = [&](int rank) {
      return buffers * static_cast<std::size_t>(rank) / static_cast<std::size_t>(node.size());
    };
    return {cut(node.rank()), cut(node.rank() + 1)};
  }
  const std::size_t before = state_.parameter_elements();
  const ElementRange slice = reducer_->slice();
  const auto within = [&](std::size_t element) {
    return std::min(std::max(element, before) - before, buffers);
  };
  return {within(slice.first), within(slice.last)};
}

void CreatedSession::finish() {
  if (!unfinished_) return;
  unfinished_ = false;
  const auto phase = ground_.trace.phase("finish");
  in_contact([&] { shares_parameters() ? reducer_->finish() : reducer_->complete_sum(); });
}

}  // namespace lockstep
