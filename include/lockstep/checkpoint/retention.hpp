#pragma once

#include <string>
#include <vector>

#include <lockstep/checkpoint/state_file.hpp>

namespace lockstep {

struct RetentionOptions {
  int max_to_keep = 5;                       ///< 0: all
  double keep_checkpoint_every_n_hours = 0;  ///< 0: none beyond `max_to_keep`
};

/// What to do after a save: the state that is to be, and the files that are to go.
struct RetentionPlan {
  StateFile state;
  std::vector<std::string> remove;
};

/// Keeps the newest `max_to_keep` checkpoints, and of those that would go one for every
/// `keep_checkpoint_every_n_hours` since the last one kept so (the first ever when that is unknown), which
/// then stays for good. `current`, the one just saved, always stays. Pure: a function of its arguments alone,
/// so that a restart in between changes nothing, and a lowered limit holds from the next save on.
RetentionPlan plan_retention(const StateFile& state, const std::string& current,
                             const RetentionOptions& options);

}  // namespace lockstep
