#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

/// What a study keeps while the number of ranks grows: the global batch, or the batch of each rank.
enum class ScalingMode { strong, weak };

std::string_view to_string(ScalingMode mode);

/// Where the time of a step goes, on the chief. `imbalance` is what it waits for others: to have read the sum
/// of the step before, to come to the reduction, and to end their update. `other` is what remains of the
/// whole.
enum class StepPart { data, compute, reduction, imbalance, update, save, other };
inline constexpr std::array<std::string_view, 7> kStepParts{"data",   "compute", "reduction", "imbalance",
                                                            "update", "save",    "other"};

/// One run of a study: what was measured, and where.
struct ScalingSample {
  ScalingMode mode = ScalingMode::strong;
  std::int64_t ranks = 1;
  std::int64_t nodes = 1;
  std::int64_t repeat = 0;
  std::int64_t global_batch = 1;
  std::int64_t micro_batch = 1;
  std::int64_t steps = 0;
  double gradient_bytes = 0;  ///< of one gradient, as it crosses the network
  double step_seconds = 0;    ///< of a step, over the run without its first
  std::array<double, kStepParts.size()> part_seconds{};
  std::string digest = {};   ///< of the parameters at the end
  std::string host = {};     ///< of the chief
  std::string machine = {};  ///< the CPU, and how many of them
  std::string binding = {};  ///< what the launcher was told
  std::string version = {};
  std::string date = {};  ///< of the start, UTC
  double load = 0;        ///< of the host before the start, over the last minute
};

/// The sample of a run from its --report (with --report_parts 1), a JSON object. The rest of the sample is
/// the caller's. Throws DataError for what is no such report, or one of a run without steps.
ScalingSample sample_of_report(std::string_view report);

/// One sample a JSON object of one line. Throws DataError when it is none.
std::string to_json(const ScalingSample& sample);
ScalingSample sample_from_json(std::string_view text);

/// A head line and one line a sample.
std::string to_csv(std::span<const ScalingSample> samples);

}  // namespace lockstep
