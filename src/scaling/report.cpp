#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include <lockstep/scaling/model.hpp>
#include <lockstep/scaling/report.hpp>

namespace lockstep {
namespace {

// Of the draws for intervals: another one for each figure.
constexpr unsigned kSeed = 2026;

std::string milliseconds(double seconds) {
  const double ms = seconds * 1e3;
  return fmt::format("{:.{}f}", ms, ms < 1 ? 4 : ms < 10 ? 3 : ms < 100 ? 2 : 1);
}

std::string interval(const Estimate& e, double factor, int digits) {
  if (std::isnan(e.low)) return fmt::format("{:.{}f}", e.value * factor, digits);
  return fmt::format("{:.{}f} [{:.{}f}, {:.{}f}]", e.value * factor, digits, e.low * factor, digits,
                     e.high * factor, digits);
}

std::string step_cell(const Estimate& e) {
  if (std::isnan(e.low)) return milliseconds(e.value);
  return fmt::format("{} [{}, {}]", milliseconds(e.value), milliseconds(e.low), milliseconds(e.high));
}

/// The cells of a table; the first row is its head.
std::vector<std::vector<std::string>> cells(const ScalingTable& table) {
  std::vector<std::vector<std::string>> rows = {
      {"ranks", "runs", "ms a step [95 %]", "speed-up [95 %]", "efficiency in % [95 %]"}};
  for (const std::string_view part : kStepParts) rows.front().push_back(fmt::format("{} ms", part));
  for (const ScalingRow& row : table.rows) {
    rows.push_back({std::to_string(row.ranks), std::to_string(row.samples), step_cell(row.step_seconds),
                    interval(row.speed_up, 1, 2), interval(row.efficiency, 100, 1)});
    for (const double part : row.part_seconds) rows.back().push_back(milliseconds(part));
  }
  return rows;
}

std::string title(const NamedStudy& study, const ScalingTable& table) {
  return fmt::format("{}, {} scaling", study.name, to_string(table.mode));
}

std::string remark(const ScalingTable& table) {
  return table.same_bits ? "All runs of a batch size ended with the same bits."
                         : "RUNS OF ONE BATCH SIZE ENDED WITH DIFFERENT BITS.";
}

std::string where(const NamedStudy& study) {
  const ScalingSample& first = study.samples.front();
  const auto last = std::ranges::max_element(study.samples, {}, &ScalingSample::date);
  return fmt::format("{} on {} ({}), {}, from {} to {}", first.version, first.host, first.machine,
                     first.binding, first.date, last->date);
}

/// Characters that mean something to the language replaced.
std::string escaped(std::string_view text, std::string_view special,
                    const std::vector<std::string_view>& instead) {
  std::string result;
  for (const char c : text) {
    const std::size_t at = special.find(c);
    if (at == std::string_view::npos) {
      result += c;
    } else {
      result += instead[at];
    }
  }
  return result;
}

std::string for_html(std::string_view text) {
  return escaped(text, "&<>\"", {"&amp;", "&lt;", "&gt;", "&quot;"});
}
std::string for_latex(std::string_view text) {
  return escaped(text, "%&_#${}\\^~",
                 {"\\%", "\\&", "\\_", "\\#", "\\$", "\\{", "\\}", "\\textbackslash{}", "\\textasciicircum{}",
                  "\\textasciitilde{}"});
}
std::string for_gnuplot(std::string_view text) {
  return escaped(text, "\"\\_{}^@", {"'", "/", " ", "(", ")", " ", " "});
}

std::map<std::int64_t, std::vector<double>> step_times(const NamedStudy& study, ScalingMode mode) {
  std::map<std::int64_t, std::vector<double>> times;
  for (const ScalingSample& s : study.samples) {
    if (s.mode == mode) times[s.ranks].push_back(s.step_seconds);
  }
  return times;
}

/// `panels`: pictures below each other.
std::string script(std::string_view name, std::string_view body, std::size_t panels = 1) {
  const std::size_t height = panels == 1 ? 560 : 380 * panels;
  return fmt::format(
      "# gnuplot {0}.gp\n"
      "do for [kind in \"svg png\"] {{\n"
      "if (kind eq \"svg\") {{ set terminal svg size 800,{2} font \"sans,15\" background \"white\" }} \\\n"
      "else {{ set terminal pngcairo size 1600,{3} fontscale 2 linewidth 2 }}\n"
      "set output \"{0}.\".kind\n"
      "set grid ytics linecolor rgb \"#dddddd\"\n"
      "set border 3\n"
      "set tics nomirror\n"
      "{1}"
      "set output\n"
      "}}\n",
      name, body, height, 2 * height);
}

/// What a law knows of the network, and how large buckets should be for it.
std::string network_words(const NamedStudy& study, const ScalingModel& model) {
  if (!model.network.known()) {
    return model.ranks_per_node == 0
               ? "All of them as if on one node: run lockstep-scaling probe on two nodes, with the study's "
                 "folder as --out, and the report reckons with the network between them."
               : fmt::format("Nodes have {} ranks.", model.ranks_per_node);
  }
  // A message takes the latency and its bytes: these are 80 % of it from four times the bytes of a latency
  // on.
  const double bucket = 4 * model.network.latency * model.network.bandwidth;
  return fmt::format(
      "Nodes have {} ranks; between them {:.1f} us and {:.2f} GB/s, as {}. Buckets of {:.0f} KiB or more use "
      "80 % of that (--bucket_bytes; without it they are chosen by a measurement at the start).",
      model.ranks_per_node, model.network.latency * 1e6, model.network.bandwidth * 1e-9,
      std::ranges::any_of(study.samples, [](const ScalingSample& s) { return s.nodes > 1; }) ? "fitted"
                                                                                             : "probed",
      std::ceil(bucket / 1024));
}

}  // namespace

std::vector<ScalingTable> tabulate(std::span<const ScalingSample> samples) {
  std::vector<ScalingTable> tables;
  unsigned seed = kSeed;
  for (const ScalingMode mode : {ScalingMode::strong, ScalingMode::weak}) {
    std::map<std::int64_t, std::vector<double>> times;
    std::map<std::int64_t, std::array<std::vector<double>, kStepParts.size()>> parts;
    std::map<std::int64_t, std::string> digests;  // by global batch
    ScalingTable table{.mode = mode};
    for (const ScalingSample& s : samples) {
      if (s.mode != mode) continue;
      times[s.ranks].push_back(s.step_seconds);
      for (std::size_t i = 0; i < kStepParts.size(); ++i) parts[s.ranks][i].push_back(s.part_seconds[i]);
      const auto [at, is_new] = digests.emplace(s.global_batch, s.digest);
      table.same_bits = table.same_bits && (is_new || at->second == s.digest);
    }
    if (times.empty()) continue;
    const std::int64_t base_ranks = times.begin()->first;
    const double base = median(times.begin()->second);
    const std::vector<double> base_drawn = bootstrap_medians(times.begin()->second, seed++);
    for (const auto& [ranks, seconds] : times) {
      ScalingRow row{.ranks = ranks, .samples = static_cast<std::int64_t>(seconds.size())};
      // The smallest number of ranks is what the others are compared with, and exact by definition.
      const bool is_base = ranks == base_ranks;
      const std::vector<double> drawn = is_base ? base_drawn : bootstrap_medians(seconds, seed++);
      const double value = median(seconds);
      row.step_seconds = with_interval(value, drawn);
      for (std::size_t i = 0; i < kStepParts.size(); ++i) row.part_seconds[i] = median(parts[ranks][i]);
      std::vector<double> ratios = drawn.empty() ? std::vector<double>() : base_drawn;
      for (std::size_t i = 0; i < ratios.size(); ++i) ratios[i] /= drawn[i];
      const Estimate ratio = is_base ? Estimate{1, 1, 1} : with_interval(base / value, std::move(ratios));
      const double growth = static_cast<double>(ranks) / static_cast<double>(base_ranks);
      const double speed = mode == ScalingMode::strong ? 1 : growth;
      row.speed_up = {ratio.value * speed, ratio.low * speed, ratio.high * speed};
      row.efficiency = {row.speed_up.value / growth, row.speed_up.low / growth, row.speed_up.high / growth};
      table.rows.push_back(row);
    }
    tables.push_back(std::move(table));
  }
  return tables;
}

/// "1" 1, "2" 2, ...: a mark for each number of ranks.
std::string ScalingReport::rank_tics(std::span<const Series> series) {
  std::vector<std::int64_t> all;
  for (const Series& one : series) {
    for (const ScalingRow& row : one.table.rows) all.push_back(row.ranks);
  }
  std::ranges::sort(all);
  all.erase(std::unique(all.begin(), all.end()), all.end());
  std::string tics;
  for (const std::int64_t ranks : all)
    tics += fmt::format("{}\"{}\" {}", tics.empty() ? "" : ", ", ranks, ranks);
  return fmt::format(
      "set xlabel \"ranks\"\nset logscale x 2\nset xtics ({})\n"
      "set xrange [{}:{}]\n",
      tics, static_cast<double>(all.front()) / 1.25, static_cast<double>(all.back()) * 1.25);
}

std::string ScalingReport::plot_lines(std::span<const Series> series, std::string_view ideal,
                                      int value_column) {
  std::string plot = fmt::format(
      "plot {} with lines linewidth 2 dashtype 2 linecolor rgb \"#888888\" title \"ideal\"", ideal);
  for (std::size_t i = 0; i < series.size(); ++i) {
    plot += fmt::format(
        ", \\\n  \"series-{0}.dat\" using 1:{1}:{2}:{3} with yerrorlines linewidth 2 pointtype {4} title "
        "\"{5}\"",
        i, value_column, value_column + 1, value_column + 2, 5 + 2 * i, for_gnuplot(series[i].title));
  }
  return plot + "\n";
}

/// How well a law fits the study, and what it predicts, or why it does not.
void ScalingReport::add_model(const NamedStudy& study, const ScalingFit& fit,
                              std::span<const Series> series) {
  if (!fit.held_out.empty()) {
    Printed checks{fmt::format("{}, a law that has not seen these ranks", study.name),
                   fmt::format("Worst error {:.1f} %.", 100 * fit.worst_error),
                   {{"scaling", "ranks", "measured ms", "predicted ms", "error in %"}}};
    for (const ScalingFit::HeldOut& held : fit.held_out) {
      checks.rows.push_back({std::string(to_string(held.mode)), std::to_string(held.ranks),
                             milliseconds(held.measured), milliseconds(held.predicted),
                             fmt::format("{:+.1f}", 100 * held.error())});
    }
    printed_.push_back(std::move(checks));
  }
  for (const auto& [name, table] : series) {
    Printed predictions{name + ", predicted", "", {}};
    if (!fit.refusal.empty()) {
      predictions.text = fmt::format("No prediction: {}.", fit.refusal);
      printed_.push_back(std::move(predictions));
      break;
    }
    const std::int64_t most = table.rows.back().ranks;
    const auto smallest = std::ranges::find(study.samples, table.mode, &ScalingSample::mode);
    const std::int64_t batch =
        table.mode == ScalingMode::weak ? smallest->global_batch / smallest->ranks : smallest->global_batch;
    predictions.text =
        fmt::format("From runs of up to {} ranks, by a law that missed held-out ones by at most {:.1f} %. {}",
                    most, 100 * fit.worst_error, network_words(study, fit.model));
    predictions.rows = {
        {"ranks", "nodes", "ms a step", "efficiency in %", "limited by", "80 % compute from a batch of"}};
    for (const ScalingPrediction& p :
         predict(fit.model, table.mode, table.rows.front().ranks, 2 * most, batch)) {
      predictions.rows.push_back({std::to_string(p.ranks), std::to_string(p.nodes),
                                  milliseconds(p.step_seconds), fmt::format("{:.1f}", 100 * p.efficiency),
                                  p.limit, p.batch > 0 ? std::to_string(p.batch) : "none"});
    }
    printed_.push_back(std::move(predictions));
    const std::int64_t least = table.rows.front().ranks;
    laws_.push_back({name + ", its law", predict(fit.model, table.mode, least, least, batch)});
  }
}

/// How long the steps of `other` take where `first` has no runs, beside what its law says.
void ScalingReport::add_outcome(const NamedStudy& first, const ScalingFit& fit, const NamedStudy& other) {
  if (!fit.refusal.empty()) return;
  for (const ScalingMode mode : {ScalingMode::strong, ScalingMode::weak}) {
    const auto known = step_times(first, mode);
    Printed table{
        fmt::format("{} beside what {} predicts, {} scaling", other.name, first.name, to_string(mode)),
        "Of numbers of ranks that the law has not seen.",
        {{"ranks", "predicted ms", "measured ms", "error in %"}}};
    for (const auto& [ranks, seconds] : step_times(other, mode)) {
      const auto sample = std::ranges::find_if(
          other.samples, [&, of = ranks](const ScalingSample& s) { return s.mode == mode && s.ranks == of; });
      if (known.empty() || known.contains(ranks) || sample->micro_batch != fit.model.micro_batch) continue;
      const double measured = median(seconds);
      const double predicted = fit.model.step_seconds(ranks, sample->nodes, sample->global_batch);
      table.rows.push_back({std::to_string(ranks), milliseconds(predicted), milliseconds(measured),
                            fmt::format("{:+.1f}", 100 * (predicted / measured - 1))});
    }
    if (table.rows.size() > 1) printed_.push_back(std::move(table));
  }
}

/// How long the steps of `other` take beside those of `first`, where both have runs.
void ScalingReport::add_comparison(const NamedStudy& first, const NamedStudy& other) {
  for (const ScalingMode mode : {ScalingMode::strong, ScalingMode::weak}) {
    const auto theirs = step_times(first, mode);
    Printed table{fmt::format("{} beside {}, {} scaling", other.name, first.name, to_string(mode)),
                  fmt::format("Time a step of {} over that of {}.", other.name, first.name),
                  {{"ranks", first.name + " ms", other.name + " ms", "ratio [95 %]"}}};
    for (const auto& [ranks, seconds] : step_times(other, mode)) {
      const auto found = theirs.find(ranks);
      if (found == theirs.end()) continue;
      const auto seed = kSeed + 1000 + static_cast<unsigned>(ranks);
      table.rows.push_back({std::to_string(ranks), milliseconds(median(found->second)),
                            milliseconds(median(seconds)),
                            interval(estimate_ratio(seconds, found->second, seed), 1, 3)});
    }
    if (table.rows.size() > 1) printed_.push_back(std::move(table));
  }
}

ScalingReport::ScalingReport(std::vector<NamedStudy> studies) {
  std::vector<std::size_t> first_series;
  for (const NamedStudy& study : studies) {
    first_series.push_back(series_.size());
    for (ScalingTable& table : tabulate(study.samples)) {
      std::string name = title(study, table);
      printed_.push_back({name, where(study) + ". " + remark(table), cells(table)});
      series_.push_back({std::move(name), std::move(table)});
    }
  }
  first_series.push_back(series_.size());
  std::vector<ScalingFit> fits;
  for (std::size_t i = 0; i < studies.size(); ++i) {
    fits.push_back(fit_scaling(studies[i].samples, studies[i].network));
    add_model(studies[i], fits.back(),
              std::span(series_).subspan(first_series[i], first_series[i + 1] - first_series[i]));
    if (i == 0) drawn_laws_ = laws_.size();
  }
  for (std::size_t i = 1; i < studies.size(); ++i) {
    add_comparison(studies.front(), studies[i]);
    add_outcome(studies.front(), fits.front(), studies[i]);
  }
}

std::string ScalingReport::markdown() const {
  std::string text;
  for (const Printed& table : printed_) {
    text += fmt::format("## {}\n\n{}\n\n", table.title, table.text);
    if (table.rows.size() < 2) continue;
    bool head = true;
    for (const auto& row : table.rows) {
      text += fmt::format("| {} |\n", fmt::join(row, " | "));
      if (!std::exchange(head, false)) continue;
      text += "|";
      for (std::size_t i = 0; i < row.size(); ++i) text += "---|";
      text += "\n";
    }
    text += "\n";
  }
  return text;
}

std::string ScalingReport::latex() const {
  std::string text = "% needs \\usepackage{booktabs}\n";
  for (const Printed& table : printed_) {
    if (table.rows.size() < 2) {
      text += fmt::format("% {}: {}\n", table.title, table.text);
      continue;
    }
    text += fmt::format("\\begin{{table}}\n\\caption{{{}. {}}}\n\\begin{{tabular}}{{{}}}\n\\toprule\n",
                        for_latex(table.title), for_latex(table.text),
                        std::string(table.rows.front().size(), 'r'));
    for (std::size_t i = 0; i < table.rows.size(); ++i) {
      std::vector<std::string> row;
      for (const std::string& cell : table.rows[i]) row.push_back(for_latex(cell));
      text += fmt::format("{} \\\\\n{}", fmt::join(row, " & "), i == 0 ? "\\midrule\n" : "");
    }
    text += "\\bottomrule\n\\end{tabular}\n\\end{table}\n";
  }
  return text;
}

std::map<std::string, std::string> ScalingReport::plots() const {
  std::map<std::string, std::string> files;
  for (std::size_t i = 0; i < series_.size(); ++i) {
    std::string data = "# ranks speed_up low high efficiency_percent low high";
    for (const std::string_view part : kStepParts) data += fmt::format(" {}_ms", part);
    data += "\n";
    for (const ScalingRow& row : series_[i].table.rows) {
      data += std::to_string(row.ranks);
      for (const auto& [e, factor] : {std::pair(row.speed_up, 1.0), std::pair(row.efficiency, 100.0)}) {
        // A single run has no interval: the bar shrinks to the point.
        const bool none = std::isnan(e.low);
        data += fmt::format(" {} {} {}", e.value * factor, (none ? e.value : e.low) * factor,
                            (none ? e.value : e.high) * factor);
      }
      for (const double part : row.part_seconds) data += fmt::format(" {}", part * 1e3);
      data += "\n";
    }
    files[fmt::format("series-{}.dat", i)] = std::move(data);
  }
  const std::int64_t least = series_.front().table.rows.front().ranks;
  files["speed_up.gp"] = script("speed_up", rank_tics(series_) +
                                                "set ylabel \"speed-up (bars: 95 % intervals)\"\nset "
                                                "logscale y 2\nset key left top Left reverse\n" +
                                                plot_lines(series_, fmt::format("x/{}.0", least), 2));
  files["efficiency.gp"] =
      script("efficiency", rank_tics(series_) +
                               "set ylabel \"efficiency in % (bars: 95 % intervals)\"\nset yrange [0:115]\n"
                               "set key left bottom Left reverse\n" +
                               plot_lines(series_, "100", 5));
  // A panel of bars a series, below each other: of their own heights, and with room for the ranks.
  const std::array<std::string_view, kStepParts.size()> colours{"#56b4e9", "#0072b2", "#d55e00", "#e69f00",
                                                                "#009e73", "#cc79a7", "#bbbbbb"};
  std::string bars =
      "set ylabel \"ms a step\"\nset xlabel \"ranks\"\nset style data histograms\n"
      "set style histogram rowstacked\nset style fill solid 0.9 border -1\nset boxwidth 0.7\n"
      "set yrange [0:*]\nset xtics rotate by -45\nset key outside right top\n";
  bars += fmt::format("set multiplot layout {},1\n", series_.size());
  for (std::size_t i = 0; i < series_.size(); ++i) {
    bars += fmt::format("set title \"{}\"\nplot ", for_gnuplot(series_[i].title));
    for (std::size_t p = 0; p < kStepParts.size(); ++p) {
      bars += fmt::format("{}\"series-{}.dat\" using {}:xtic(1) linecolor rgb \"{}\" title \"{}\"",
                          p == 0 ? "" : ", \\\n  ", i, 8 + p, colours[p], kStepParts[p]);
    }
    bars += "\n";
  }
  bars += "unset multiplot\n";
  files["parts.gp"] = script("parts", bars, series_.size());
  for (std::size_t i = 0; i < drawn_laws_; ++i) {
    std::string data = "# ranks efficiency_percent\n";
    for (const ScalingPrediction& p : laws_[i].predictions) {
      data += fmt::format("{} {}\n", p.ranks, 100 * p.efficiency);
    }
    files[fmt::format("law-{}.dat", i)] = std::move(data);
  }
  if (drawn_laws_ > 0) files["prediction.gp"] = script("prediction", prediction_plot());
  return files;
}

/// The laws of the first study as lines, up to where they predict; what was measured, then or later, as
/// points.
std::string ScalingReport::prediction_plot() const {
  const auto laws = std::span(laws_).first(drawn_laws_);
  std::int64_t least = laws.front().predictions.front().ranks;
  std::int64_t most = least;
  for (const Law& law : laws) {
    least = std::min(least, law.predictions.front().ranks);
    most = std::max(most, law.predictions.back().ranks);
  }
  std::string plot = fmt::format(
      "set xlabel \"ranks\"\nset logscale x 2\nset xtics rotate by -45\nset xrange [{}:{}]\n"
      "set ylabel \"efficiency in % (bars: 95 % intervals)\"\nset yrange [0:115]\n"
      "set key left bottom Left reverse\nplot 100 with lines linewidth 2 dashtype 2 linecolor rgb "
      "\"#888888\" title \"ideal\"",
      static_cast<double>(least) / 1.25, static_cast<double>(most) * 1.25);
  // A law has the colour of what it was fitted to, which comes first.
  for (std::size_t i = 0; i < laws.size(); ++i) {
    plot += fmt::format(", \\\n  \"law-{}.dat\" using 1:2 with lines linewidth 2 linetype {} title \"{}\"", i,
                        i + 1, for_gnuplot(laws[i].title));
  }
  for (std::size_t i = series_.size(); i-- > 0;) {
    plot += fmt::format(
        ", \\\n  \"series-{0}.dat\" using 1:5:6:7 with yerrorbars linewidth 2 pointsize {1} linetype {2} "
        "pointtype {3} title \"{4}\"",
        i, i < laws.size() ? 1.2 : 2, i + 1, 4 + 2 * i, for_gnuplot(series_[i].title));
  }
  return plot + "\n";
}

std::string ScalingReport::html(const std::map<std::string, std::string>& pictures) const {
  std::string page =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Scaling "
      "study</title>\n<style>\n"
      "body { font-family: sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }\n"
      "table { border-collapse: collapse; margin: 1em 0; }\n"
      "td, th { padding: 0.25em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }\n"
      "svg { max-width: 100%; height: auto; }\n</style>\n</head>\n<body>\n<h1>Scaling study</h1>\n";
  for (const Printed& table : printed_) {
    page += fmt::format("<h2>{}</h2>\n<p>{}</p>\n", for_html(table.title), for_html(table.text));
    if (table.rows.size() < 2) continue;
    page += "<table>\n";
    bool head = true;
    for (const auto& row : table.rows) {
      const char* const kind = std::exchange(head, false) ? "th" : "td";
      page += "<tr>";
      for (const std::string& cell : row) page += fmt::format("<{0}>{1}</{0}>", kind, for_html(cell));
      page += "</tr>\n";
    }
    page += "</table>\n";
  }
  for (const auto& [name, svg] : pictures) {
    // Within a page a picture begins with its element.
    page +=
        fmt::format("<h2>{}</h2>\n{}\n", for_html(name), svg.substr(std::min(svg.find("<svg"), svg.size())));
  }
  return page + "</body>\n</html>\n";
}

}  // namespace lockstep
