// Scaling studies: runs a training on several numbers of ranks, and says how it scales. No MPI program
// itself.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <optional>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include <boost/program_options.hpp>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/command.hpp>
#include <lockstep/base/error.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/scaling/probe.hpp>
#include <lockstep/scaling/report.hpp>
#include <lockstep/scaling/study.hpp>

#include "usage.hpp"

namespace lockstep {
namespace {

namespace po = boost::program_options;

constexpr const char* kUsage =
    "lockstep-scaling run --out DIR --ranks 1,2,4 --global_batch N [OPTION...] [-- OPTION OF "
    "lockstep-train...]\n"
    "lockstep-scaling report DIR [DIR...] [--out DIR]\n"
    "lockstep-scaling probe --ranks N [--directory DIR] [--out DIR]\n\n"
    "Runs a training on several numbers of ranks, repeats taking turns, and says how it scales. A study that "
    "was\n"
    "interrupted goes on where it was.\n";

// Of one sample, or one report.
constexpr std::uint64_t kMostBytes = std::uint64_t{64} << 20;

std::string read_text(Directory& directory, const std::string& name) {
  const auto bytes = read_all(*directory.open(name), kMostBytes);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// What `parse` makes of a file; errors in it name the file.
template <class Parse>
auto parsed(Directory& directory, const std::string& name, Parse parse) {
  try {
    return parse(read_text(directory, name));
  } catch (const DataError& error) {
    throw DataError(fmt::format("{}: {}", (directory.path() / name).string(), error.what()));
  }
}

void write_text(Directory& directory, const std::string& name, const std::string& text) {
  replace_file(directory, name, std::as_bytes(std::span(text)));
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

/// "1,2,4".
std::vector<std::int64_t> ranks_of(const std::string& text) {
  std::set<std::int64_t> ranks;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');) {
    constexpr std::size_t kDigits = 7;
    const bool good = !word.empty() && word.size() <= kDigits &&
                      word.find_first_not_of("0123456789") == std::string::npos && word != "0";
    if (!good)
      throw UsageError(fmt::format("--ranks: '{}' is no number of ranks; give some, as 1,2,4", word));
    ranks.insert(std::stoll(word));
  }
  if (ranks.empty()) throw UsageError("--ranks names none; give some, as 1,2,4");
  return {ranks.begin(), ranks.end()};
}

/// "AMD EPYC, 2 CPUs".
std::string machine(FileSystem& files) {
  std::string name = "a CPU of unknown type";
  try {
    std::string text(1 << 14, '\0');
    const auto file = files.open_file("/proc/cpuinfo");
    text.resize(file->read(0, std::as_writable_bytes(std::span(text))));
    const std::string key = "model name";
    const std::size_t at = text.find(key);
    if (at != std::string::npos) {
      const std::size_t colon = text.find(": ", at);
      if (colon != std::string::npos) name = text.substr(colon + 2, text.find('\n', colon) - colon - 2);
    }
  } catch (const FileError&) {
    // Not everywhere.
  }
  return fmt::format("{}, {} CPUs", name, sysconf(_SC_NPROCESSORS_ONLN));
}

/// The words that start an MPI program, up to its number of ranks.
std::vector<std::string> launch_words(const std::string& launcher) {
  std::vector<std::string> words = words_of(launcher);
  if (words.empty()) throw UsageError("--launcher is empty; give mpirun or srun, with options");
  words.emplace_back(words.front().ends_with("srun") ? "-n" : "-np");
  return words;
}

std::string default_launcher() {
  return std::getenv("SLURM_JOB_ID") != nullptr ? "srun" : "mpirun";
}

struct RunOptions {
  StudyPlan plan;
  std::string out;
  std::optional<std::int64_t> only;  ///< this run of the study alone, by its place
  bool job_array = false;            ///< print a batch script instead
};

/// The program of this name beside this one, or the one that a shell would find.
std::string beside(const std::string& self, const std::string& name) {
  const std::size_t slash = self.rfind('/');
  return slash == std::string::npos ? name : self.substr(0, slash + 1) + name;
}

RunOptions parse_run(int argc, const char* const* argv, const std::string& self, std::string& help) {
  const auto* const end = argv + argc;
  const auto* const dashes = std::find(argv, end, std::string_view("--"));
  RunOptions o;
  std::string ranks;
  std::string mode = "strong";
  std::string launcher = default_launcher();
  std::string train = beside(self, "lockstep-train");
  std::string config;
  std::int64_t only = -1;
  po::options_description all("Options of run");
  all.add_options()("out", po::value(&o.out), "folder of the study: samples, reports and logs of all runs")(
      "ranks", po::value(&ranks), "numbers of ranks, as 1,2,4")("mode", po::value(&mode)->default_value(mode),
                                                                "strong, weak, or both")(
      "global_batch", po::value(&o.plan.global_batch),
      "samples a step; weak: for each rank. Must have micro-batches for all ranks")(
      "repeats", po::value(&o.plan.repeats)->default_value(o.plan.repeats), "runs of each number of ranks")(
      "steps", po::value(&o.plan.steps)->default_value(o.plan.steps),
      "of each run; the first is not counted")("config", po::value(&config),
                                               "of lockstep-train: a file of `name = value` lines")(
      "launcher", po::value(&launcher)->default_value(launcher),
      "words that start an MPI program, without the number of ranks")(
      "train", po::value(&train)->default_value(train), "the training program")(
      "job_array", po::bool_switch(&o.job_array),
      "run nothing; print a script for sbatch in which each run is a job of an array")(
      "only", po::value(&only), "one run by its place, from 0: for jobs of an array")("help", "this text");
  // A config is for the training program: the study's own options come from the command line alone.
  std::vector<const char*> own(argv, dashes);
  for (const char*& word : own) {
    if (std::string_view(word) == "--config") word = "--training_config";
  }
  all.add_options()("training_config", po::value(&config), "");
  const auto values = parse_options(static_cast<int>(own.size()), own.data(), all);
  if (values.count("help") != 0) {
    std::ostringstream text;
    text << kUsage << "\n" << all;
    help = text.str();
    return o;
  }
  if (o.out.empty()) throw UsageError("run needs --out, the folder of the study");
  if (ranks.empty()) throw UsageError("run needs --ranks, as 1,2,4");
  o.plan.ranks = ranks_of(ranks);
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
    constexpr std::int64_t kMost = 1'000'000'000;
    if (value < least || value > kMost) {
      throw UsageError(fmt::format("--{} {} is out of range; give {} to {}", name, value, least, kMost));
    }
  };
  at_least("global_batch", o.plan.global_batch, 1);
  at_least("repeats", o.plan.repeats, 1);
  at_least("steps", o.plan.steps, 2);
  if (mode == "strong" || mode == "weak") {
    o.plan.modes = {mode == "strong" ? ScalingMode::strong : ScalingMode::weak};
  } else if (mode == "both") {
    o.plan.modes = {ScalingMode::strong, ScalingMode::weak};
  } else {
    throw UsageError(fmt::format("--mode {} is none; give strong, weak or both", mode));
  }
  if (values.count("only") != 0) {
    const std::int64_t most =
        static_cast<std::int64_t>(o.plan.modes.size() * o.plan.ranks.size()) * o.plan.repeats;
    if (only < 0 || only >= most) {
      throw UsageError(fmt::format("--only {} is out of range; the study has runs 0 to {}", only, most - 1));
    }
    o.only = only;
  }
  if (o.job_array && values["launcher"].defaulted()) launcher = "srun";
  o.plan.launch = launch_words(launcher);
  o.plan.train = {train};
  if (!config.empty()) {
    o.plan.train.emplace_back("--config");
    o.plan.train.push_back(config);
  }
  // What a study measures is training, not the disk; who wants to see saves gives a folder.
  for (const char* const word : {"--checkpoint_dir", "", "--summary_dir", ""})
    o.plan.train.emplace_back(word);
  if (dashes != end) o.plan.train.insert(o.plan.train.end(), dashes + 1, end);
  return o;
}

std::vector<ScalingSample> load_samples(Directory& runs) {
  std::vector<ScalingSample> samples;
  const std::string ending = ".sample.json";
  for (const DirectoryEntry& entry : runs.list()) {
    if (entry.name.ends_with(ending)) samples.push_back(parsed(runs, entry.name, sample_from_json));
  }
  std::ranges::sort(samples, {},
                    [](const ScalingSample& s) { return std::tuple(s.mode, s.ranks, s.repeat); });
  return samples;
}

void write_samples(Directory& out, const std::vector<ScalingSample>& samples) {
  std::string array;
  for (const ScalingSample& sample : samples) array += (array.empty() ? "[\n" : ",\n") + to_json(sample);
  write_text(out, "samples.json", array + "\n]\n");
  write_text(out, "samples.csv", to_csv(samples));
}

/// The study of this folder is the one that is asked for, or a new one.
void take_plan(Directory& out, const std::string& plan) {
  if (!out.exists("study.json")) {
    write_text(out, "study.json", plan);
  } else if (read_text(out, "study.json") != plan) {
    throw EnvironmentError(
        fmt::format("{} holds a study of something else (see its study.json); give its options to go on with "
                    "it, or another --out",
                    out.path().string()));
  }
}

/// As a shell reads it back.
std::string shell_quoted(const std::string& word) {
  std::string result = "'";
  for (const char c : word) result += c == '\'' ? "'\\''" : std::string(1, c);
  return result + "'";
}

/// A batch script that runs the study `argv` (of `run`) as an array, one job after the other, so that repeats
/// still take turns.
std::string job_array(const RunOptions& o, const std::string& self, int argc, const char* const* argv) {
  std::string words = shell_quoted(self) + " run --only \"$SLURM_ARRAY_TASK_ID\" --launcher " +
                      shell_quoted(fmt::format(
                          "{}", fmt::join(std::span(o.plan.launch).first(o.plan.launch.size() - 1), " ")));
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--job_array") continue;
    if (word == "--launcher") {
      ++i;
      continue;
    }
    words += " " + shell_quoted(argv[i]);
  }
  return fmt::format(
      "#!/bin/bash\n#SBATCH --job-name=lockstep-scaling\n#SBATCH --ntasks={}\n#SBATCH --exclusive\n"
      "#SBATCH --array=0-{}%1\n#SBATCH --output=%x-%A_%a.out\n"
      "# Samples and the report come when all are through: the same `lockstep-scaling run` with this "
      "launcher.\n"
      "exec {}\n",
      o.plan.ranks.back(), interleaved(o.plan).size() - 1, words);
}

void run_study(const RunOptions& o) {
  PosixFileSystem files;
  const SystemClock clock;
  const auto out = files.create_directory(o.out);
  const auto runs = files.create_directory(out->path() / "runs");
  take_plan(*out, to_json(o.plan) + "\n");
  const auto all = interleaved(o.plan);
  const std::string cpu = machine(files);
  const std::string host = SystemIdentity().host();
  std::size_t done = 0;
  for (const StudyRun& run : all) {
    ++done;
    if (o.only && static_cast<std::int64_t>(done) != *o.only + 1) continue;
    if (runs->exists(run.name() + ".sample.json")) continue;
    const std::string report = (runs->path() / (run.name() + ".report.json")).string();
    const auto words = command_of(o.plan, run, report);
    std::array<double, 1> load{};
    static_cast<void>(getloadavg(load.data(), 1));
    const double started = clock.wall_seconds();
    const auto log = runs->path() / (run.name() + ".log");
    const int code = run_command(words, log);
    if (code != 0) {
      const std::string message =
          fmt::format("{} ended with exit code {}; see {}, then run again to go on from here", run.name(),
                      code, log.string());
      if (code == static_cast<int>(ExitCode::usage)) throw UsageError(message);
      if (code == static_cast<int>(ExitCode::data)) throw DataError(message);
      throw TrainingError(message);
    }
    ScalingSample sample = parsed(*runs, run.name() + ".report.json", sample_of_report);
    sample.mode = run.mode;
    sample.repeat = run.repeat;
    sample.host = host;
    sample.machine = cpu;
    sample.binding = fmt::format("{}", fmt::join(o.plan.launch, " "));
    sample.date = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(started)));
    sample.load = load[0];
    write_text(*runs, run.name() + ".sample.json", to_json(sample) + "\n");
    std::puts(fmt::format("{:3} of {}  {:<6} {:>5} ranks  {:10.4f} ms a step", done, all.size(),
                          to_string(run.mode), run.ranks, sample.step_seconds * 1e3)
                  .c_str());
    std::fflush(stdout);
  }
  if (o.only) return;
  write_samples(*out, load_samples(*runs));
  std::puts(fmt::format("{} samples in {}; now: lockstep-scaling report {}", all.size(),
                        (out->path() / "samples.csv").string(), o.out)
                .c_str());
}

void write_report(const std::vector<std::string>& folders, std::string to) {
  PosixFileSystem files;
  std::vector<NamedStudy> studies;
  for (const std::string& folder : folders) {
    const auto whole = files.open_directory(folder);
    if (!whole->exists("runs")) {
      throw DataError(fmt::format("{} is no folder of a study: it has no runs", folder));
    }
    const auto runs = files.open_directory(std::filesystem::path(folder) / "runs");
    NamedStudy study{std::filesystem::path(folder).lexically_normal().filename().string(),
                     load_samples(*runs)};
    if (study.name.empty()) study.name = std::filesystem::path(folder).parent_path().filename().string();
    // Of two studies in folders of one name each goes by its whole path.
    const bool is_taken = std::ranges::find(studies, study.name, &NamedStudy::name) != studies.end();
    if (is_taken) study.name = folder;
    if (whole->exists("probe.json")) {
      const auto ranks = parsed(*whole, "probe.json", probed_ranks);
      study.network = {median_of(ranks, &ProbedRank::between_latency),
                       median_of(ranks, &ProbedRank::between_bandwidth)};
    }
    if (study.samples.empty())
      throw DataError(fmt::format("{} has no samples yet; run the study first", folder));
    studies.push_back(std::move(study));
  }
  if (to.empty()) to = folders.front() + "/report";
  const auto out = files.create_directory(to);
  const ScalingReport report(std::move(studies));
  const std::string tables = report.markdown();
  write_text(*out, "report.md", tables);
  write_text(*out, "report.tex", report.latex());
  std::map<std::string, std::string> pictures;
  const auto plots = report.plots();
  for (const auto& [file, text] : plots) write_text(*out, file, text);
  for (const std::string name : {"speed_up", "efficiency", "parts", "prediction"}) {
    if (!plots.contains(name + ".gp")) continue;
    int code = 127;
    try {
      // gnuplot writes where it runs.
      code = run_command(std::vector<std::string>{"env", "-C", out->path().string(), "gnuplot", name + ".gp"},
                         out->path() / (name + ".log"));
    } catch (const IoError&) {
      // As if it were not there.
    }
    if (code == 0) {
      out->remove(name + ".log");
      pictures[name] = read_text(*out, name + ".svg");
    } else {
      std::fputs(fmt::format("warning: there is no plot {} (gnuplot ended with {}; see {}); the tables are "
                             "complete\n",
                             name, code, (out->path() / (name + ".log")).string())
                     .c_str(),
                 stderr);
    }
  }
  write_text(*out, "report.html", report.html(pictures));
  std::fputs(tables.c_str(), stdout);
  std::puts(fmt::format("written to {}", out->path().string()).c_str());
}

/// What the machine can do, from a run of lockstep-probe.
int probe(int argc, const char* const* argv, const std::string& self) {
  std::string ranks;
  std::string directory;
  std::string out;
  std::string launcher = default_launcher();
  po::options_description all("Options of probe");
  all.add_options()("ranks", po::value(&ranks), "how many, as later in the study")(
      "directory", po::value(&directory), "whose file system is measured, too")(
      "out", po::value(&out), "folder for probe.json; that of a study, for its model")(
      "launcher", po::value(&launcher)->default_value(launcher),
      "words that start an MPI program, without the number of ranks")("help", "this text");
  const auto values = parse_options(argc, argv, all);
  if (values.count("help") != 0) {
    std::ostringstream text;
    text << kUsage << "\n" << all;
    std::fputs(text.str().c_str(), stdout);
    return 0;
  }
  const auto numbers = ranks_of(ranks);
  if (numbers.size() != 1) throw UsageError("probe needs one number of ranks: --ranks 64");
  PosixFileSystem files;
  if (out.empty()) out = ".";
  const auto folder = files.create_directory(out);
  auto words = launch_words(launcher);
  words.push_back(std::to_string(numbers.front()));
  words.push_back(beside(self, "lockstep-probe"));
  words.emplace_back("--report");
  words.push_back((folder->path() / "probe.json").string());
  if (!directory.empty()) {
    words.emplace_back("--directory");
    words.push_back(directory);
  }
  const int code = run_command(words, folder->path() / "probe.log");
  const std::string said = read_text(*folder, "probe.log");
  std::fputs(said.c_str(), code == 0 ? stdout : stderr);
  if (code != 0) throw TrainingError(fmt::format("lockstep-probe ended with exit code {}", code));
  return 0;
}

int run(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "--help";
  if (command == "--version") {
    std::puts(version_text().c_str());
    return 0;
  }
  if (command == "--help") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  // The word takes the place of the program's name.
  if (command == "run") {
    std::string help;
    const RunOptions options = parse_run(argc - 1, argv + 1, argv[0], help);
    if (options.job_array && help.empty()) help = job_array(options, argv[0], argc - 1, argv + 1);
    if (help.empty()) {
      run_study(options);
    } else {
      std::fputs(help.c_str(), stdout);
    }
    return 0;
  }
  if (command == "report") {
    std::vector<std::string> folders;
    std::string out;
    po::options_description all("Options of report");
    all.add_options()("out", po::value(&out), "where to; default: DIR/report")(
        "study", po::value(&folders), "folders of studies; those beyond the first are shown beside it")(
        "help", "this text");
    po::positional_options_description positional;
    positional.add("study", -1);
    const auto values = parse_options(argc - 1, argv + 1, all, positional);
    if (values.count("help") != 0) {
      std::ostringstream text;
      text << kUsage << "\n" << all;
      std::fputs(text.str().c_str(), stdout);
      return 0;
    }
    if (folders.empty()) throw UsageError("report needs the folder of a study");
    write_report(folders, out);
    return 0;
  }
  if (command == "probe") return probe(argc - 1, argv + 1, argv[0]);
  throw UsageError(fmt::format("'{}' is no command of lockstep-scaling; give run, report or probe", command));
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  try {
    return lockstep::run(argc, argv);
  } catch (const std::exception& error) {
    std::fputs(fmt::format("error: {}\n", error.what()).c_str(), stderr);
    return static_cast<int>(lockstep::exit_code_of(error));
  }
}
