#include <algorithm>
#include <map>
#include <set>

#include <doctest/doctest.h>

#include <lockstep/scaling/study.hpp>

namespace lockstep {
namespace {

StudyPlan plan() {
  return {.modes = {ScalingMode::strong, ScalingMode::weak},
          .ranks = {1, 2, 4},
          .repeats = 6,
          .steps = 50,
          .global_batch = 128,
          .launch = {"mpirun", "-np"},
          .train = {"train", "--seed", "7"}};
}

}  // namespace

TEST_CASE(
    "every run comes once, a repeat is over before the next begins, and each place in it is everybody's") {
  const auto runs = interleaved(plan());
  std::set<std::string> names;
  for (const StudyRun& run : runs) names.insert(run.name());
  CHECK(runs.size() == 36);
  CHECK(names.size() == 36);
  CHECK(names.contains("weak-4-5"));
  CHECK(std::ranges::is_sorted(runs, {}, &StudyRun::repeat));
  // Six different runs a repeat, six repeats: each is first once.
  std::set<std::string> first;
  for (std::size_t i = 0; i < runs.size(); i += 6) {
    StudyRun run = runs[i];
    run.repeat = 0;
    first.insert(run.name());
  }
  CHECK(first.size() == 6);
}

TEST_CASE("strong scaling keeps the global batch, weak scaling that of a rank") {
  const auto strong = command_of(plan(), {ScalingMode::strong, 4, 0}, "r.json");
  const auto weak = command_of(plan(), {ScalingMode::weak, 4, 0}, "r.json");
  const std::vector<std::string> expected{
      "mpirun", "-np",         "4",  "train",          "--seed", "7",        "--global_batch",
      "128",    "--last_step", "50", "--report_parts", "1",      "--report", "r.json"};
  CHECK(strong == expected);
  CHECK(std::ranges::count(weak, "512") == 1);
}

TEST_CASE("plans that differ in anything read differently") {
  const std::string text = to_json(plan());
  CHECK(to_json(plan()) == text);
  StudyPlan other = plan();
  other.steps = 51;
  CHECK(to_json(other) != text);
  other = plan();
  other.train.push_back("--threads");
  CHECK(to_json(other) != text);
  other = plan();
  other.modes.pop_back();
  CHECK(to_json(other) != text);
}

}  // namespace lockstep
