#include <cstddef>

#include <lockstep/checkpoint/retention.hpp>

namespace lockstep {

RetentionPlan plan_retention(const StateFile& state, const std::string& current,
                             const RetentionOptions& options) {
  constexpr double kSecondsPerHour = 3600;
  RetentionPlan plan{{{}, state.last_preserved}, {}};
  std::size_t counted = 0;
  for (const CheckpointRecord& record : state.checkpoints) counted += record.preserved ? 0 : 1;
  const auto limit = static_cast<std::size_t>(options.max_to_keep > 0 ? options.max_to_keep : 0);
  const double spacing = options.keep_checkpoint_every_n_hours * kSecondsPerHour;
  for (CheckpointRecord record : state.checkpoints) {
    const bool surplus = limit != 0 && counted > limit && !record.preserved && record.file != current;
    if (surplus) {
      --counted;
      const bool due =
          spacing > 0 && (!plan.state.last_preserved || record.time >= *plan.state.last_preserved + spacing);
      if (!due) {
        plan.remove.push_back(record.file);
        continue;
      }
      record.preserved = true;
      plan.state.last_preserved = record.time;
    }
    plan.state.checkpoints.push_back(std::move(record));
  }
  return plan;
}

}  // namespace lockstep
