#include <cmath>

#include <doctest/doctest.h>

#include <lockstep/scaling/report.hpp>

namespace lockstep {
namespace {

ScalingSample sample(ScalingMode mode, std::int64_t ranks, std::int64_t repeat, double seconds) {
  ScalingSample s{.mode = mode, .ranks = ranks, .repeat = repeat};
  s.global_batch = mode == ScalingMode::strong ? 128 : 128 * ranks;
  s.step_seconds = seconds;
  s.part_seconds = {0, 0.5 * seconds, 0.25 * seconds, 0.25 * seconds, 0, 0, 0};
  s.digest = "d" + std::to_string(s.global_batch);
  s.host = "<node_1>";
  s.date = "2026-11-23T16:00:0" + std::to_string(repeat % 10) + "Z";
  return s;
}

/// Strong: 1, 2 and 4 ranks at 100, 50 and 40 ms; weak: at 100, 100 and 125 ms. Two runs each, 2 ms apart.
std::vector<ScalingSample> known() {
  std::vector<ScalingSample> samples;
  for (const auto& [ranks, strong, weak] :
       {std::tuple(1, 0.100, 0.100), std::tuple(2, 0.050, 0.100), std::tuple(4, 0.040, 0.125)}) {
    for (int repeat = 0; repeat < 2; ++repeat) {
      const double apart = repeat == 0 ? 1.01 : 0.99;
      samples.push_back(sample(ScalingMode::strong, ranks, repeat, strong * apart));
      samples.push_back(sample(ScalingMode::weak, ranks, repeat, weak * apart));
    }
  }
  return samples;
}

}  // namespace

TEST_CASE("speed-up and efficiency compare with the smallest number of ranks") {
  const auto tables = tabulate(known());
  REQUIRE(tables.size() == 2);
  const ScalingTable& strong = tables[0];
  CHECK(strong.same_bits);
  REQUIRE(strong.rows.size() == 3);
  CHECK(strong.rows[0].efficiency.value == 1);
  CHECK(strong.rows[1].speed_up.value == doctest::Approx(2));
  CHECK(strong.rows[2].speed_up.value == doctest::Approx(2.5));
  CHECK(strong.rows[2].efficiency.value == doctest::Approx(0.625));
  CHECK(strong.rows[2].efficiency.low < 0.625);
  CHECK(strong.rows[2].efficiency.low > 0.61);
  CHECK(strong.rows[2].efficiency.high > 0.625);
  CHECK(strong.rows[2].part_seconds[static_cast<std::size_t>(StepPart::compute)] == doctest::Approx(0.02));
  const ScalingTable& weak = tables[1];
  CHECK(weak.rows[2].speed_up.value == doctest::Approx(3.2));
  CHECK(weak.rows[2].efficiency.value == doctest::Approx(0.8));
}

TEST_CASE("a study that begins with several ranks compares with those") {
  std::vector<ScalingSample> samples;
  for (const auto& [ranks, seconds] : {std::pair(4, 0.1), std::pair(8, 0.0625)}) {
    samples.push_back(sample(ScalingMode::strong, ranks, 0, seconds));
  }
  const auto tables = tabulate(samples);
  CHECK(tables[0].rows[1].speed_up.value == doctest::Approx(1.6));
  CHECK(tables[0].rows[1].efficiency.value == doctest::Approx(0.8));
  CHECK(std::isnan(tables[0].rows[1].efficiency.low));  // one run each
}

TEST_CASE("another digest among runs of one batch size is told") {
  auto samples = known();
  samples[4].digest = "other";
  CHECK(!tabulate(samples)[0].same_bits);
  CHECK(tabulate(samples)[1].same_bits);
  const std::vector<NamedStudy> studies{{"a", samples}};
  CHECK(ScalingReport(studies).markdown().find("DIFFERENT BITS") != std::string::npos);
}

TEST_CASE(
    "tables, plots and the page hold what was measured, and nothing that their languages would misread") {
  const std::vector<NamedStudy> studies{{"my_study", known()}, {"50% \"other\"", known()}};
  const std::string md = ScalingReport(studies).markdown();
  CHECK(md.find("## my_study, strong scaling") != std::string::npos);
  CHECK(md.find("| 4 | 2 | 40.00 [39.60, 40.40] | 2.50 [2.4") != std::string::npos);
  const std::string tex = ScalingReport(studies).latex();
  CHECK(tex.find("my\\_study") != std::string::npos);
  CHECK(tex.find("50\\% ") != std::string::npos);
  CHECK(tex.find("efficiency in \\% [95 \\%]") != std::string::npos);
  const auto files = ScalingReport(studies).plots();
  for (const char* const name :
       {"speed_up.gp", "efficiency.gp", "parts.gp", "series-0.dat", "series-3.dat"}) {
    CAPTURE(name);
    CHECK(files.contains(name));
  }
  CHECK(files.at("series-0.dat").find("\n4 2.5 ") != std::string::npos);
  CHECK(files.at("efficiency.gp").find("ideal") != std::string::npos);
  CHECK(files.at("speed_up.gp").find("50% 'other', weak") != std::string::npos);
  const std::string page =
      ScalingReport(studies).html({{"speed_up", "<?xml version=\"1.0\"?>\n<svg>picture</svg>"}});
  CHECK(page.find("<svg>picture</svg>") != std::string::npos);
  CHECK(page.find("<?xml") == std::string::npos);
  CHECK(page.find("&lt;node_1&gt;") != std::string::npos);
  CHECK(page.find("http") == std::string::npos);  // needs no network
}

TEST_CASE("a report predicts from a law that was checked, and else says why not") {
  // Three numbers of ranks that no law of these parts fits: 2 ranks take as long in all as 1.
  const std::string odd = ScalingReport({{"odd", known()}}).markdown();
  CHECK(odd.find("a law that has not seen these ranks") != std::string::npos);
  CHECK(odd.find("No prediction: a law that has not seen ") != std::string::npos);
  std::vector<ScalingSample> plain;
  for (const std::int64_t ranks : {1, 2, 4, 8}) {
    ScalingSample s = sample(ScalingMode::strong, ranks, 0, 0.128 / static_cast<double>(ranks));
    s.part_seconds = {};
    s.part_seconds[static_cast<std::size_t>(StepPart::compute)] = s.step_seconds;
    plain.push_back(s);
  }
  const std::vector<NamedStudy> studies{{"plain", plain}};
  const std::string md = ScalingReport(studies).markdown();
  CHECK(md.find("Worst error 0.0 %.") != std::string::npos);
  CHECK(md.find("| 16 | 1 | 8.000 | 100.0 | compute | 16 |") != std::string::npos);
  CHECK(md.find("| 256 | 1 | 1.000 | 50.0 | ranks without a micro-batch, from 129 on | 256 |") !=
        std::string::npos);
  CHECK(md.find("| 8192 |") != std::string::npos);
  CHECK(ScalingReport(studies).latex().find("8192 & ") != std::string::npos);
  CHECK(md.find("run lockstep-scaling probe on two nodes") != std::string::npos);
  const std::string probed = ScalingReport({{"plain", plain, {20e-6, 2e9}}}).markdown();
  CHECK(
      probed.find("Nodes have 8 ranks; between them 20.0 us and 2.00 GB/s, as probed. Buckets of 157 KiB") !=
      std::string::npos);
  CHECK(probed.find("| 16 | 2 | 8.04") != std::string::npos);
  CHECK(ScalingReport(studies).html({}).find("<td>8192</td>") != std::string::npos);
}

TEST_CASE("what a law predicted stands beside what was measured then, in a table and as a line") {
  const auto perfect = [](std::vector<std::int64_t> rank_counts) {
    std::vector<ScalingSample> samples;
    for (const std::int64_t ranks : rank_counts) {
      ScalingSample s = sample(ScalingMode::strong, ranks, 0, 0.128 / static_cast<double>(ranks));
      s.part_seconds = {};
      s.part_seconds[static_cast<std::size_t>(StepPart::compute)] = s.step_seconds;
      samples.push_back(s);
    }
    return samples;
  };
  auto later = perfect({4, 16, 32});
  later.back().step_seconds *= 1.25;
  const ScalingReport report({{"early", perfect({1, 2, 4, 8})}, {"later", later}});
  const std::string md = report.markdown();
  const std::size_t table = md.find("## later beside what early predicts, strong scaling");
  REQUIRE(table != std::string::npos);
  const std::string of = md.substr(table);
  CHECK(of.find("| 4 |") == std::string::npos);  // seen
  CHECK(of.find("| 16 | 8.000 | 8.000 | +0.0 |") != std::string::npos);
  CHECK(of.find("| 32 | 4.000 | 5.000 | -20.0 |") != std::string::npos);
  const auto files = report.plots();
  CHECK(files.at("law-0.dat").find("\n1 100\n") != std::string::npos);
  CHECK(files.at("law-0.dat").find("\n8192 ") != std::string::npos);
  CHECK(files.at("prediction.gp").find("law-0.dat") != std::string::npos);
  CHECK(!ScalingReport({{"odd", known()}}).plots().contains("prediction.gp"));
}

TEST_CASE("names that LaTeX would read as commands are escaped") {
  const std::string tex = ScalingReport({{"a{b}\\c^d~e", known()}}).latex();
  CHECK(tex.find("a\\{b\\}\\textbackslash{}c\\textasciicircum{}d\\textasciitilde{}e") != std::string::npos);
}

TEST_CASE("two studies stand side by side where both have runs") {
  auto slower = known();
  for (ScalingSample& s : slower) s.step_seconds *= 1.5;
  std::erase_if(slower, [](const ScalingSample& s) { return s.ranks == 4 || s.mode == ScalingMode::weak; });
  const std::string md = ScalingReport({{"a", known()}, {"b", slower}}).markdown();
  CHECK(md.find("## b beside a, strong scaling") != std::string::npos);
  CHECK(md.find("| 2 | 50.00 | 75.00 | 1.500 [1.4") != std::string::npos);
  CHECK(md.find("beside a, weak") == std::string::npos);
  CHECK(md.find("| 4 | ", md.find("## b beside a")) == std::string::npos);
}

TEST_CASE("10,000 samples take a moment") {
  std::vector<ScalingSample> samples;
  for (int i = 0; i < 10000; ++i) {
    samples.push_back(
        sample(ScalingMode::strong, std::int64_t{1} << i % 10, i, 0.1 + 1e-6 * (i * 7919 % 1000)));
  }
  CHECK(tabulate(samples).front().rows.back().samples == 1000);
}

}  // namespace lockstep
