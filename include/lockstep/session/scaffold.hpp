#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <lockstep/checkpoint/saver.hpp>
#include <lockstep/hooks/summary_writer.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

/// What a session does once to make the state ready (tf.train.Scaffold). All members may be left out;
/// `finalize`, which the session calls, fills in the rest. None may communicate.
///
/// A copy is a scaffold like the original in which members can be set again (copy_from_scaffold). Each
/// function is handed the state that it is called for, so a copy works on the session that it is given to.
struct Scaffold {
  using Names = std::vector<std::string>;

  /// Writes the first values, when nothing was restored. Chief only; the values then reach all ranks.
  /// Default: zeros, but for memory of the user's, which stays as it is.
  std::function<void(State&)> init = {};

  /// The same, after `init`.
  std::function<void(State&)> init_fn = {};

  /// Names what `local_init` needs and is not there yet; an error on all ranks unless it names nothing. On
  /// every rank, after the values have reached it. Default: parameters that are not finite.
  std::function<Names(const State&)> ready_for_local_init = {};

  /// On every rank, whenever a session is created, after the state has its values: what is not in
  /// checkpoints. Default: nothing.
  std::function<void(State&)> local_init = {};

  /// Names what is not ready after all that; an error on all ranks unless it names nothing. On every rank.
  /// Default: parameters and buffers that are not finite.
  std::function<Names(const State&)> ready = {};

  /// Writes summaries beside the step's values, whenever these are written. Chief only. Default: none.
  std::function<void(SummaryWriter&, const State&, std::int64_t step)> summary = {};

  SaverOptions saver = {};

  /// Fills in what was left out; does nothing the second time. Local.
  Scaffold& finalize();
  bool finalized() const noexcept;
};

}  // namespace lockstep
