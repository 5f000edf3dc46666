#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/checkpoint/state_file.hpp>

namespace lockstep {

/// Keep the best checkpoints by a value of their steps.
struct KeepBest {
  std::string metric;    ///< the name of the value
  int count = 1;         ///< how many
  bool highest = false;  ///< which end is best

  friend bool operator==(const KeepBest&, const KeepBest&) = default;
};

/// "loss:3", "accuracy:3", "score:2:max", "score:2:min". Without a word for it, the highest is best where the
/// name ends in "accuracy", the lowest elsewhere. Throws UsageError.
KeepBest parse_keep_best(std::string_view text);

/// A clock that goes back by no more than this is taken for one that was corrected.
inline constexpr double kClockStepSeconds = 60;

struct RetentionOptions {
  int max_to_keep = 5;                       ///< 0: all
  double keep_checkpoint_every_n_hours = 0;  ///< 0: none beyond `max_to_keep`
  std::optional<KeepBest> keep_best = {};    ///< beyond `max_to_keep`
};

/// What to do after a save: the state that is to be, and the files that are to go.
struct RetentionPlan {
  StateFile state;
  std::vector<std::string> remove;
};

/// Keeps the newest `max_to_keep` checkpoints; beside them the best by `keep_best` (of equal ones the newer),
/// as long as they are; and of those that would go one for every `keep_checkpoint_every_n_hours` since the
/// last one kept so (the first ever when that is unknown), which then stays for good. So does one that is
/// older by its time than the last one kept: the clock ran backwards. `current`, the one just saved, always
/// stays. Pure: a function of its arguments alone, so that a restart in between changes nothing, and a
/// lowered limit holds from the next save on.
RetentionPlan plan_retention(const StateFile& state, const std::string& current,
                             const RetentionOptions& options);

}  // namespace lockstep
