#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <set>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/retention.hpp>

namespace lockstep {
namespace {

std::set<std::string> best_of(const StateFile& state, const KeepBest& keep) {
  std::vector<const CheckpointRecord*> candidates;
  for (const CheckpointRecord& record : state.checkpoints) {
    if (record.metric.name == keep.metric && std::isfinite(record.metric.value)) {
      candidates.push_back(&record);
    }
  }
  // Newest first, so that of equal ones the newer stands before.
  std::ranges::reverse(candidates);
  std::ranges::stable_sort(candidates, [&](const CheckpointRecord* left, const CheckpointRecord* right) {
    return keep.highest ? left->metric.value > right->metric.value : left->metric.value < right->metric.value;
  });
  candidates.resize(std::min(candidates.size(), static_cast<std::size_t>(keep.count)));
  std::set<std::string> files;
  for (const CheckpointRecord* record : candidates) files.insert(record->file);
  return files;
}

}  // namespace

KeepBest parse_keep_best(std::string_view text) {
  const auto refuse = [&] {
    throw UsageError(fmt::format(
        "keep_best '{}' is not METRIC:K, such as loss:3 or, where high is good, score:3:max", text));
  };
  const auto colon = text.find(':');
  if (colon == std::string_view::npos) refuse();
  KeepBest keep{std::string(text.substr(0, colon)), 0, text.substr(0, colon).ends_with("accuracy")};
  std::string_view count = text.substr(colon + 1);
  if (const auto second = count.find(':'); second != std::string_view::npos) {
    const std::string_view end = count.substr(second + 1);
    if (end != "max" && end != "min") refuse();
    keep.highest = end == "max";
    count = count.substr(0, second);
  }
  const auto [rest, error] = std::from_chars(count.data(), count.data() + count.size(), keep.count);
  if (keep.metric.empty() || keep.metric.size() > Metric::kMaxName || error != std::errc{} ||
      rest != count.data() + count.size() || keep.count < 1) {
    refuse();
  }
  return keep;
}

RetentionPlan plan_retention(const StateFile& state, const std::string& current,
                             const RetentionOptions& options) {
  constexpr double kSecondsPerHour = 3600;
  RetentionPlan plan{{{}, state.last_preserved, state.token}, {}};
  const auto best = options.keep_best ? best_of(state, *options.keep_best) : std::set<std::string>();
  std::size_t counted = 0;
  for (const CheckpointRecord& record : state.checkpoints) counted += record.preserved ? 0 : 1;
  const auto limit = static_cast<std::size_t>(options.max_to_keep > 0 ? options.max_to_keep : 0);
  const double spacing = options.keep_checkpoint_every_n_hours * kSecondsPerHour;
  for (CheckpointRecord record : state.checkpoints) {
    const bool surplus = limit != 0 && counted > limit && !record.preserved && record.file != current;
    if (surplus) --counted;
    if (surplus && !best.contains(record.file)) {
      // Later by its step and earlier by its time: the clock ran backwards, and nobody knows how many hours
      // have passed. Better one too many; from it on they count anew.
      const auto& last = plan.state.last_preserved;
      const bool due =
          spacing > 0 && (!last || record.time >= *last + spacing || record.time < *last - kClockStepSeconds);
      if (!due) {
        plan.remove.push_back(record.file);
        plan.state.retired.push_back({record.file, record.digest});
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
