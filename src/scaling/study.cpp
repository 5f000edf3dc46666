#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <lockstep/scaling/study.hpp>

namespace lockstep {

std::string StudyRun::name() const {
  return fmt::format("{}-{}-{}", to_string(mode), ranks, repeat);
}

std::vector<StudyRun> interleaved(const StudyPlan& plan) {
  std::vector<StudyRun> once;
  for (const ScalingMode mode : plan.modes) {
    for (const std::int64_t ranks : plan.ranks) once.push_back({mode, ranks, 0});
  }
  std::vector<StudyRun> runs;
  for (std::int64_t repeat = 0; repeat < plan.repeats; ++repeat) {
    for (std::size_t i = 0; i < once.size(); ++i) {
      StudyRun run = once[(i + static_cast<std::size_t>(repeat)) % once.size()];
      run.repeat = repeat;
      runs.push_back(run);
    }
  }
  return runs;
}

std::vector<std::string> command_of(const StudyPlan& plan, const StudyRun& run, const std::string& report) {
  std::vector<std::string> words = plan.launch;
  words.push_back(std::to_string(run.ranks));
  words.insert(words.end(), plan.train.begin(), plan.train.end());
  const std::int64_t batch = plan.global_batch * (run.mode == ScalingMode::weak ? run.ranks : 1);
  for (const std::string& word :
       {std::string("--global_batch"), std::to_string(batch), std::string("--last_step"),
        std::to_string(plan.steps), std::string("--report_parts"), std::string("1"), std::string("--report"),
        report}) {
    words.push_back(word);
  }
  return words;
}

std::string to_json(const StudyPlan& plan) {
  nlohmann::json modes = nlohmann::json::array();
  for (const ScalingMode mode : plan.modes) modes.push_back(to_string(mode));
  return nlohmann::json{{"modes", modes},
                        {"ranks", plan.ranks},
                        {"repeats", plan.repeats},
                        {"steps", plan.steps},
                        {"global_batch", plan.global_batch},
                        {"launch", plan.launch},
                        {"train", plan.train}}
      .dump(2);
}

}  // namespace lockstep
