#include <string>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <lockstep/base/error.hpp>
#include <lockstep/scaling/sample.hpp>

namespace lockstep {
namespace {

nlohmann::json report() {
  return {{"ranks", 2},
          {"nodes", 2},
          {"parameters", 1000},
          {"gradient_dtype", "f32"},
          {"global_batch", 100},
          {"micro_batch", 50},
          {"global_step", 30},
          {"parameters_digest", "abc"},
          {"version", "lockstep 1"},
          {"samples_per_second", 1000.0},
          {"parts",
           {{"steps", 28},
            {"wait_chief", 0.01},
            {"wait_mean", 0.02},
            {"seconds",
             {{"step", 0.095},
              {"data", 0.002},
              {"compute", 0.05},
              {"reduce", 0.015},
              {"update", 0.004},
              {"finish", 0.001},
              {"begin", 0.002},
              {"checkpoint_saver", 0.003}}}}}};
}

}  // namespace

TEST_CASE("a report gives a sample whose parts add up to the step") {
  const ScalingSample sample = sample_of_report(report().dump());
  CHECK(sample.ranks == 2);
  CHECK(sample.nodes == 2);
  CHECK(sample.gradient_bytes == 4000);
  CHECK(sample.steps == 30);
  CHECK(sample.digest == "abc");
  CHECK(sample.step_seconds == doctest::Approx(0.1));
  const double expected[] = {0.002, 0.05, 0.005, 0.013, 0.004, 0.003, 0.023};
  double sum = 0;
  for (std::size_t i = 0; i < kStepParts.size(); ++i) {
    CAPTURE(i);
    CHECK(sample.part_seconds[i] == doctest::Approx(expected[i]));
    sum += sample.part_seconds[i];
  }
  CHECK(sum == doctest::Approx(sample.step_seconds));
}

TEST_CASE("what the rank waits that came last is messages, not imbalance") {
  auto of_nodes = report();
  of_nodes["parts"]["wait_last"] = 0.004;
  const ScalingSample sample = sample_of_report(of_nodes.dump());
  CHECK(sample.part_seconds[static_cast<std::size_t>(StepPart::reduction)] == doctest::Approx(0.009));
  CHECK(sample.part_seconds[static_cast<std::size_t>(StepPart::imbalance)] == doctest::Approx(0.009));
  of_nodes["parts"]["wait_last"] = 1.0;  // by another clock
  const ScalingSample odd = sample_of_report(of_nodes.dump());
  CHECK(odd.part_seconds[static_cast<std::size_t>(StepPart::reduction)] == doctest::Approx(0.015));
}

TEST_CASE("what is no report, or of a run too short to be timed, is refused") {
  CHECK_THROWS_AS(sample_of_report("{"), DataError);
  CHECK_THROWS_AS(sample_of_report("{}"), DataError);
  auto untimed = report();
  untimed["samples_per_second"] = 0.0;
  CHECK_THROWS_AS(sample_of_report(untimed.dump()), DataError);
  auto without_parts = report();
  without_parts.erase("parts");
  CHECK_THROWS_AS(sample_of_report(without_parts.dump()), DataError);
}

TEST_CASE("a sample comes back from its JSON as it was, and from no other") {
  ScalingSample sample = sample_of_report(report().dump());
  sample.mode = ScalingMode::weak;
  sample.repeat = 3;
  sample.host = "node \"7\"";
  sample.machine = "CPU, 2";
  sample.binding = "mpirun -np";
  sample.date = "2026-11-23T16:00:00Z";
  sample.load = 0.25;
  const std::string text = to_json(sample);
  CHECK(text.find('\n') == std::string::npos);
  CHECK(to_json(sample_from_json(text)) == text);
  CHECK(sample_from_json(text).mode == ScalingMode::weak);
  CHECK(sample_from_json(text).host == sample.host);
  for (const char* key : {"mode", "ranks", "nodes", "step_seconds", "parts", "digest", "load"}) {
    CAPTURE(key);
    auto broken = nlohmann::json::parse(text);
    broken.erase(key);
    CHECK_THROWS_AS(sample_from_json(broken.dump()), DataError);
  }
  auto negative = nlohmann::json::parse(text);
  negative["step_seconds"] = -1;
  CHECK_THROWS_AS(sample_from_json(negative.dump()), DataError);
  negative = nlohmann::json::parse(text);
  negative["parts"]["compute"] = -0.001;
  CHECK_THROWS_AS(sample_from_json(negative.dump()), DataError);
  negative = nlohmann::json::parse(text);
  negative["gradient_bytes"] = -4;
  CHECK_THROWS_AS(sample_from_json(negative.dump()), DataError);
  for (const char* key : {"ranks", "global_batch"}) {
    CAPTURE(key);
    auto huge = nlohmann::json::parse(text);
    huge[key] = std::int64_t{1} << 62;
    CHECK_THROWS_AS(sample_from_json(huge.dump()), DataError);
  }
  for (const char* key : {"ranks", "nodes", "micro_batch", "global_batch"}) {
    CAPTURE(key);
    auto none = nlohmann::json::parse(text);
    none[key] = 0;
    CHECK_THROWS_AS(sample_from_json(none.dump()), DataError);
  }

  const std::string csv = to_csv(std::vector{sample, sample});
  CHECK(std::count(csv.begin(), csv.end(), '\n') == 3);
  CHECK(csv.starts_with(
      "mode,ranks,nodes,repeat,global_batch,micro_batch,steps,gradient_bytes,step_seconds,data_seconds,"));
  CHECK(csv.find("\nweak,2,2,3,100,50,30,4000,0.1,0.002,") != std::string::npos);
  CHECK(csv.find(",\"node \"\"7\"\"\",\"CPU, 2\",") != std::string::npos);
}

}  // namespace lockstep
