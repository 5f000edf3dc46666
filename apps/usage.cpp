#include "usage.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <sstream>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/files.hpp>

namespace lockstep {
namespace {

namespace po = boost::program_options;

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row.back();
}

std::string closest(const std::string& name, const po::options_description& options) {
  std::string best;
  std::size_t distance = std::max<std::size_t>(2, name.size() / 3) + 1;
  for (const auto& option : options.options()) {
    const std::size_t d = edit_distance(name, option->long_name());
    if (d < distance) {
      distance = d;
      best = option->long_name();
    }
  }
  return best.empty() ? "see --help" : fmt::format("did you mean --{}? See --help", best);
}

std::string strip_dashes(std::string name) {
  name.erase(0, std::min(name.find_first_not_of('-'), name.size()));
  return name;
}

std::string read_config(const std::string& path) {
  constexpr std::uint64_t kLimit = 1 << 20;
  try {
    PosixFileSystem files;
    const auto file = files.open_file(path);
    const auto bytes = read_all(*file, kLimit);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  } catch (const Error& error) {
    throw UsageError(fmt::format("--config: {}; give a file of `name = value` lines", error.what()));
  }
}

}  // namespace

po::variables_map parse_options(int argc, const char* const* argv, const po::options_description& options,
                                const po::positional_options_description& positional) {
  po::variables_map values;
  std::string where = "on the command line";
  try {
    // Guessing an option from its beginning would let a later option change what a script means.
    const int style = po::command_line_style::default_style & ~po::command_line_style::allow_guessing;
    po::store(po::command_line_parser(argc, argv).options(options).positional(positional).style(style).run(),
              values);
    if (values.count("config") != 0) {
      const auto path = values["config"].as<std::string>();
      where = fmt::format("in {}", path);
      std::istringstream file(read_config(path));
      po::store(po::parse_config_file(file, options), values);
    }
    po::notify(values);
  } catch (const po::unknown_option& error) {
    const std::string name = strip_dashes(error.get_option_name());
    throw UsageError(fmt::format("unknown option '{}' {}; {}", name, where, closest(name, options)));
  } catch (const po::too_many_positional_options_error&) {
    throw UsageError("there are arguments that belong to no option; options start with --, see --help");
  } catch (const po::error& error) {
    throw UsageError(fmt::format("{} ({}); see --help", error.what(), where));
  }
  return values;
}

std::string version_text() {
  return "lockstep " LOCKSTEP_VERSION;
}

}  // namespace lockstep
