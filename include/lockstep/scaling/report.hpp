#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/scaling/model.hpp>
#include <lockstep/scaling/sample.hpp>
#include <lockstep/scaling/statistics.hpp>

namespace lockstep {

/// What a study says of one number of ranks.
struct ScalingRow {
  std::int64_t ranks = 1;
  std::int64_t samples = 0;
  Estimate step_seconds = {};
  std::array<double, kStepParts.size()> part_seconds{};  ///< medians
  Estimate speed_up =
      {};  ///< strong: of the step; weak: of samples a second; the smallest number of ranks as ideal
  Estimate efficiency = {};  ///< speed_up over the growth of ranks
};

/// The rows of one mode, by ranks.
struct ScalingTable {
  ScalingMode mode = ScalingMode::strong;
  std::vector<ScalingRow> rows = {};
  bool same_bits = true;  ///< all runs of a batch size ended with one digest
};

/// One table a mode that has samples. An identical digest is asked of runs with the same global batch.
std::vector<ScalingTable> tabulate(std::span<const ScalingSample> samples);

/// A study with the name it goes by in what is written.
struct NamedStudy {
  std::string name;
  std::vector<ScalingSample> samples;
  ScalingNetwork network = {};  ///< as it was probed, if it was
};

/// What there is to say of one study, or of several side by side. Made once, as the intervals take a while.
class ScalingReport {
 public:
  /// At least one study, each with samples.
  explicit ScalingReport(std::vector<NamedStudy> studies);

  /// Tables for pasting: of each study, what a law predicts from it (see fit_scaling) or why nothing may be
  /// predicted, and of studies after the first how long their steps take beside the first's, and beside what
  /// the first's law says where the first has no runs.
  std::string markdown() const;
  std::string latex() const;

  /// What gnuplot is to run, and the data it reads: texts of files by their names. Each script `NAME.gp`
  /// writes NAME.svg and NAME.png into the folder it runs in.
  std::map<std::string, std::string> plots() const;

  /// One page that needs nothing else: `pictures` are the texts of SVG files, by name.
  std::string html(const std::map<std::string, std::string>& pictures) const;

 private:
  /// A table as it is printed: its first row is the head. Without rows it is its text alone.
  struct Printed {
    std::string title;
    std::string text;
    std::vector<std::vector<std::string>> rows;
  };
  /// One mode of one study.
  struct Series {
    std::string title;
    ScalingTable table;
  };

  /// What a law says of one series, from its smallest number of ranks on.
  struct Law {
    std::string title;
    std::vector<ScalingPrediction> predictions;
  };

  void add_model(const NamedStudy& study, const ScalingFit& fit, std::span<const Series> series);
  void add_outcome(const NamedStudy& first, const ScalingFit& fit, const NamedStudy& other);
  void add_comparison(const NamedStudy& first, const NamedStudy& other);
  static std::string rank_tics(std::span<const Series> series);
  std::string prediction_plot() const;
  static std::string plot_lines(std::span<const Series> series, std::string_view ideal, int value_column);

  std::vector<Series> series_;
  std::vector<Law> laws_;
  std::size_t drawn_laws_ = 0;  ///< those of the first study
  std::vector<Printed> printed_;
};

}  // namespace lockstep
