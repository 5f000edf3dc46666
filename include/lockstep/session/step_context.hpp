#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lockstep/hooks/end_of_input.hpp>
#include <lockstep/hooks/feeds.hpp>
#include <lockstep/hooks/step_trace.hpp>
#include <lockstep/hooks/step_values.hpp>
#include <lockstep/reduce/reducer.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

/// What a step gets from the session. Lives for one step; used on the session's thread.
///
/// A step with gradients calls `reduce` once, on every rank. Then what it returns must be what `reduce` gave
/// back, or computed from that: the same on all ranks. A step that never calls `reduce` returns this rank's
/// own values; they travel alone with the ballot and hooks see their mean over the ranks.
class StepContext {
 public:
  virtual ~StepContext() = default;

  /// The global step before this step's update: 0 in the first.
  virtual std::int64_t number() const = 0;
  virtual State& state() = 0;
  virtual int rank() const = 0;
  virtual int ranks() const = 0;

  /// What the caller of `run` and hooks feed to this step of this rank. Local.
  virtual const Feeds& feeds() const = 0;

  /// Where a step says what it does, for profiles: `const auto phase = step.trace().phase("data");`. Local.
  virtual StepTrace& trace() = 0;

  /// Sums `gradients` (as many as the state has parameter elements; see State::parameters) over the ranks and
  /// gives back the sum; `local` is replaced by its mean over the ranks. The session must have one
  /// micro-batch a rank (the default) and not share parameters. The result is valid until the next step
  /// begins.
  ///
  /// Collective. Does not return, on any rank, when any rank failed in this step or its input ended. Throws
  /// UsageError for another number of gradients or a second time; that reaches all ranks with the step.
  virtual std::span<const float> reduce(std::span<const float> gradients, StepValues& local) = 0;
  std::span<const float> reduce(std::span<const float> gradients) {
    StepValues none;
    return reduce(gradients, none);
  }

  /// This rank has run out of data and the others may have more: it has no part in this step's sums and
  /// means, whose canonical order over the rest stays as it is. Instead of begin_micro_batch; then reduce as
  /// usual (gradients given to `reduce` are ignored), return values of the same names, and update with the
  /// sum. A step in which no rank has a part is dropped on all, and all stop cleanly. Local.
  virtual void contribute_nothing() = 0;

  /// After reducing: over how many ranks and micro-batches the sum goes. Local; the same on all ranks.
  virtual int contributing_ranks() const = 0;
  virtual std::int64_t contributing_micro_batches() const = 0;

  // The same in pieces, for steps that own several micro-batches or share parameters between ranks; see
  // Reducer.

  virtual MicroBatchRange micro_batches() const = 0;       ///< This rank's. Local.
  virtual std::int64_t micro_batches_in_step() const = 0;  ///< Over all ranks. Local.

  /// Where this rank's next micro-batch puts its numbers (see Reducer): its gradient, of the parameter
  /// arena's layout; what it adds to the buffers, of theirs (zeros at first); then kMicroBatchValues zeros
  /// for the caller's own sums. Local.
  virtual std::span<float> begin_micro_batch() = 0;

  /// The gradient of the micro-batch being written is final from element `offset` on. May be left out; it
  /// lets sums of several nodes leave while backward still runs. Local.
  virtual void gradient_ready(std::size_t offset) = 0;

  virtual void end_micro_batch() = 0;  ///< Local.

  /// Something in this rank's part of the step is NaN or infinite: tells all ranks with the ballot. Local;
  /// before reducing.
  virtual void say_not_finite() = 0;

  /// Reduces what the micro-batches hold, once a step and after all that are this rank's (UsageError).
  /// Collective. Afterwards this rank's `slice` of `sum` is final. Does not return, on any rank, when any
  /// rank failed in this step or its input ended: parameters are then untouched.
  virtual void reduce_micro_batches() = 0;

  /// The parameter elements that this rank updates. Local.
  virtual ElementRange slice() const = 0;

  /// The same for the buffers: which of them this rank updates before `finish`, counted from their first.
  /// What is to be added lies in `sum`, behind the gradients. Local.
  virtual ElementRange buffer_slice() const = 0;

  /// True where the ranks of a node have one copy of the parameters, of which each updates its slice before
  /// `finish`. False: each has its own, updates all of it, and needs the whole sum: after `finish`. Local.
  virtual bool shares_parameters() const = 0;

  /// Over all micro-batches, laid out as they are: parameter elements first, padding included; what is added
  /// to the buffers; then kMicroBatchValues. After reducing, until the next step begins. Local.
  virtual std::span<const float> sum() const = 0;

  /// Returns when all ranks of the node have called it: all of `sum` is final, and so are shared parameters
  /// of which each rank has updated its slice. Collective over the node; over all ranks where the optimizer
  /// is sharded: what other nodes have updated comes in, and `sum` stays final in `slice` alone.
  virtual void finish() = 0;

  /// After reducing and before `finish`: a rank of this node has ended the step already, since its step
  /// failed or since all of them may. It takes no part in what the others still exchange, so they must not
  /// wait for it; where it failed, all ranks hear so with the next ballot. Local.
  virtual bool anyone_finished() const = 0;
};

}  // namespace lockstep
