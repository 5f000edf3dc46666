#pragma once

#include <functional>

#include <lockstep/checkpoint/saver.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

/// What a session does once to make the state ready (tf.train.Scaffold).
struct Scaffold {
  /// Writes the first values, when nothing was restored. Chief only; the values then reach all ranks. Null:
  /// zeros.
  std::function<void(State&)> init_fn = {};

  /// On every rank, whenever a session is created, after the state has its values: what is not in
  /// checkpoints.
  std::function<void(State&)> local_init_fn = {};

  SaverOptions saver = {};
};

}  // namespace lockstep
