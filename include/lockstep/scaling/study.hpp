#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <lockstep/scaling/sample.hpp>

namespace lockstep {

/// What a study runs. Everything that its samples depend on, so that one that goes on is still the same.
struct StudyPlan {
  std::vector<ScalingMode> modes = {ScalingMode::strong};
  std::vector<std::int64_t> ranks = {};  ///< increasing
  std::int64_t repeats = 5;
  std::int64_t steps = 100;              ///< of each run
  std::int64_t global_batch = 0;         ///< strong: of every run; weak: of each rank
  std::vector<std::string> launch = {};  ///< words before the number of ranks: "mpirun", ..., "-np"
  std::vector<std::string> train = {};   ///< the program and its options, without those that the study gives
};

struct StudyRun {
  ScalingMode mode = ScalingMode::strong;
  std::int64_t ranks = 1;
  std::int64_t repeat = 0;
  friend bool operator==(const StudyRun&, const StudyRun&) = default;

  std::string name() const;  ///< "strong-4-0": of its files
};

/// All runs in the order in which they are launched: repeat after repeat, each beginning with the next number
/// of ranks, so that drift of a shared machine falls on all of them alike.
std::vector<StudyRun> interleaved(const StudyPlan& plan);

/// The command of a run that writes its report to `report`.
std::vector<std::string> command_of(const StudyPlan& plan, const StudyRun& run, const std::string& report);

std::string to_json(const StudyPlan& plan);

}  // namespace lockstep
