#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <exception>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <lockstep/base/error.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/checkpoint/lock.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/state_file.hpp>
#include <lockstep/checkpoint/status_file.hpp>

#include "checkpoint_choice.hpp"
#include "tensor_export.hpp"
#include "usage.hpp"

namespace lockstep {
namespace {

namespace po = boost::program_options;
using nlohmann::json;

constexpr int kDifferent = 1;  // exit status of --diff, as that of diff(1)

struct InspectOptions {
  std::string basename{kDefaultBasename};
  std::vector<std::string> paths;
  bool verify = false;
  bool digest = false;
  bool digests = false;
  bool diff = false;
  bool as_json = false;
  std::string export_to;
  std::string names = "lockstep";
  std::shared_ptr<const MacKey> key;
};

std::string date(double seconds) {
  if (!(seconds > 0 && seconds < 4e9)) return "-";
  return fmt::format("{:%Y-%m-%d %H:%M:%S} UTC", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

std::string size_text(std::uint64_t bytes) {
  constexpr double kStep = 1024;
  auto size = static_cast<double>(bytes);
  if (size < kStep) return fmt::format("{} B", bytes);
  for (const char* unit : {"KiB", "MiB", "GiB"}) {
    size /= kStep;
    if (size < kStep) return fmt::format("{:.{}f} {}", size, size < 10 ? 1 : 0, unit);
  }
  return fmt::format("{:.1f} TiB", size / kStep);
}

/// Lines of cells under each other; numbers to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> head, std::size_t left_columns = 1) : left_columns_(left_columns) {
    if (!head.empty()) add(std::move(head));
  }

  void add(std::vector<std::string> cells) {
    widths_.resize(std::max(widths_.size(), cells.size()), 0);
    for (std::size_t i = 0; i < cells.size(); ++i) widths_[i] = std::max(widths_[i], cells[i].size());
    rows_.push_back(std::move(cells));
  }

  void print() const {
    for (const auto& row : rows_) {
      std::string line;
      for (std::size_t i = 0; i < row.size(); ++i) {
        line += i == 0 ? "  " : "   ";
        line += i < left_columns_ ? fmt::format("{:<{}}", row[i], widths_[i])
                                  : fmt::format("{:>{}}", row[i], widths_[i]);
      }
      line.erase(line.find_last_not_of(' ') + 1);
      std::puts(line.c_str());
    }
  }

 private:
  std::size_t left_columns_;
  std::vector<std::size_t> widths_;
  std::vector<std::vector<std::string>> rows_;
};

template <class T>
T element(const Entry& entry, std::size_t index) {
  T value{};
  std::memcpy(&value, entry.data + index * sizeof(T), sizeof(T));
  return value;
}

double as_number(const Entry& entry, std::size_t index) {
  switch (entry.type) {
    case ElementType::f32:
      return static_cast<double>(element<float>(entry, index));
    case ElementType::f64:
      return element<double>(entry, index);
    case ElementType::i32:
      return element<std::int32_t>(entry, index);
    case ElementType::i64:
      return static_cast<double>(element<std::int64_t>(entry, index));
    case ElementType::u8:
    case ElementType::text:
      break;
  }
  return element<std::uint8_t>(entry, index);
}

std::string text_of(const Entry& entry) {
  return {reinterpret_cast<const char*>(entry.data), entry.bytes()};
}

struct Statistics {
  double mean = 0;
  double deviation = 0;
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();
  std::int64_t finite = 0;
  std::int64_t nans = 0;
  std::int64_t infinities = 0;
};

/// Of the finite elements.
Statistics statistics_of(const Entry& entry) {
  Statistics s;
  const auto count = static_cast<std::size_t>(element_count(entry.shape));
  double square = 0;  // sum of squared distances from the mean so far (Welford)
  for (std::size_t i = 0; i < count; ++i) {
    const double value = as_number(entry, i);
    if (!std::isfinite(value)) {
      ++(std::isnan(value) ? s.nans : s.infinities);
      continue;
    }
    ++s.finite;
    const double distance = value - s.mean;
    s.mean += distance / static_cast<double>(s.finite);
    square += distance * (value - s.mean);
    s.min = std::min(s.min, value);
    s.max = std::max(s.max, value);
  }
  if (s.finite > 0) s.deviation = std::sqrt(square / static_cast<double>(s.finite));
  return s;
}

bool is_setting(const Entry& entry) {
  return entry.path.starts_with("/config/");
}

std::string setting_name(const Entry& entry) {
  return entry.path.substr(std::strlen("/config/"));
}

json settings_json(const CheckpointFile& file) {
  json settings = json::object();
  for (const Entry& entry : file.entries()) {
    if (is_setting(entry) && entry.type == ElementType::text) settings[setting_name(entry)] = text_of(entry);
  }
  return settings;
}

json digest_json(const CheckpointFile& file) {
  return {{"file", file.name()},
          {"step", file.step()},
          {"digest", file.digest().hex()},
          {"parameters_digest", file.digest("/model/").hex()}};
}

/// Of one tensor: over path, type, shape and values, as that of everything.
Digest digest_of_tensor(const Entry& entry) {
  return content_digest(std::span(&entry, 1));
}

json tensor_json(const Entry& entry) {
  json tensor = {{"name", entry.path},
                 {"type", to_string(entry.type)},
                 {"shape", entry.shape},
                 {"digest", digest_of_tensor(entry).hex()}};
  if (entry.type == ElementType::text) {
    tensor["value"] = text_of(entry);
    return tensor;
  }
  const Statistics s = statistics_of(entry);
  const auto number = [&](double value) { return s.finite > 0 ? json(value) : json(nullptr); };
  tensor["mean"] = number(s.mean);
  tensor["std"] = number(s.deviation);
  tensor["min"] = number(s.min);
  tensor["max"] = number(s.max);
  tensor["nan"] = s.nans;
  tensor["inf"] = s.infinities;
  return tensor;
}

json file_json(const CheckpointFile& file) {
  json document = digest_json(file);
  document["bytes"] = file.bytes();
  document["shards"] = file.shards();
  document["saved_at"] = file.trailer().saved_at;
  document["settings"] = settings_json(file);
  document["tensors"] = json::array();
  for (const Entry& entry : file.entries()) {
    if (!is_setting(entry)) document["tensors"].push_back(tensor_json(entry));
  }
  return document;
}

/// A text that a terminal can show on one line.
std::string one_line(const std::string& raw, std::size_t limit) {
  std::string text;
  for (const char c : raw) text += c == '\n' ? std::string("; ") : std::string(1, c);
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < ' ' || c == 0x7f; }, ' ');
  if (text.size() > limit) text = text.substr(0, limit - 3) + "...";
  return text;
}

void print_file(const CheckpointFile& file) {
  constexpr std::size_t kSettingWidth = 90;
  const Trailer& trailer = file.trailer();
  const std::string shards = file.shards().empty() ? "" : fmt::format(" in {} shards", file.shards().size());
  std::puts(fmt::format("{}: step {}, {}{}, saved {}", file.name(), file.step(), size_text(file.bytes()),
                        shards, date(trailer.saved_at))
                .c_str());
  std::puts("\ntensors");
  Table tensors({"name", "type", "shape", "mean", "std", "min", "max", "NaN"}, 3);
  std::int64_t parameters = 0;
  for (const Entry& entry : file.entries()) {
    if (is_setting(entry)) continue;
    if (entry.path.starts_with("/model/")) parameters += element_count(entry.shape);
    const std::string type(to_string(entry.type));
    if (entry.type == ElementType::text) {
      tensors.add({entry.path, type, to_string(entry.shape), one_line(text_of(entry), kSettingWidth)});
      continue;
    }
    if (entry.shape.empty()) {
      const std::string value = entry.type == ElementType::i64
                                    ? std::to_string(element<std::int64_t>(entry, 0))
                                    : fmt::format("{:.7g}", as_number(entry, 0));
      tensors.add({entry.path, type, "= " + value});
      continue;
    }
    const Statistics s = statistics_of(entry);
    const auto number = [](double value) { return fmt::format("{:.4g}", value); };
    const std::string bad =
        s.infinities == 0 ? std::to_string(s.nans) : fmt::format("{} (and {} inf)", s.nans, s.infinities);
    if (s.finite == 0) {
      tensors.add({entry.path, type, to_string(entry.shape), "-", "-", "-", "-", bad});
    } else {
      tensors.add({entry.path, type, to_string(entry.shape), number(s.mean), number(s.deviation),
                   number(s.min), number(s.max), bad});
    }
  }
  tensors.print();
  std::puts("\nsettings");
  Table settings({}, 2);
  for (const Entry& entry : file.entries()) {
    if (is_setting(entry)) settings.add({setting_name(entry), one_line(text_of(entry), kSettingWidth)});
  }
  settings.print();
  std::puts(fmt::format("\n{} parameters\ndigest of everything   {}\nof the parameters     {}", parameters,
                        file.digest().hex(), file.digest("/model/").hex())
                .c_str());
}

struct Found {
  FoundCheckpoint checkpoint;
  std::optional<Trailer> trailer;  ///< nullopt when it is damaged
  std::string problem;
};

/// Of the file and of its shards, which lie beside it.
void check_structures(const CheckpointFile& file, Directory& directory, const MacKey* key) {
  file.check_structure();
  for (const std::string& shard : file.shards()) CheckpointFile(directory, shard, key).check_structure();
}

Found examine(Directory& directory, FoundCheckpoint checkpoint, const MacKey* key) {
  Found found{std::move(checkpoint), std::nullopt, ""};
  try {
    // With its structure, as a restore would.
    const CheckpointFile file(directory, found.checkpoint.file, key);
    check_structures(file, directory, key);
    found.checkpoint.bytes = file.bytes();
    if (file.step() != found.checkpoint.name.step) {
      found.problem = fmt::format("holds step {}: it was renamed", file.step());
    } else {
      found.trailer = file.trailer();
    }
  } catch (const Error& error) {
    found.problem = error.what();
    const std::string itself = found.checkpoint.file + ": ";
    if (found.problem.starts_with(itself)) found.problem.erase(0, itself.size());
  }
  return found;
}

/// Whether the holder is known to live: nullopt for another host, of which nothing is known here.
std::optional<bool> lives(const LockHolder& holder) {
  const SystemIdentity self;
  if (holder.host != self.host()) return std::nullopt;
  return holder.boot_id == self.boot_id() && self.start_time(holder.pid) == std::optional(holder.start_time);
}

std::string status_words(const RunStatus& status, const std::optional<LockHolder>& holder) {
  const std::string at = fmt::format("step {}, {}", status.global_step, date(status.updated));
  if (status.state == "running") {
    const bool lost = !holder || lives(*holder) == std::optional(false);
    return lost ? fmt::format(
                      "lost: it was running ({}) and no living job owns the directory; launch it again", at)
                : fmt::format("running ({})", at);
  }
  const std::string code = status.exit_code ? fmt::format(", exit code {}", *status.exit_code) : "";
  const std::string hint = status.state == "stopped" ? "; launch it again to go on" : "";
  return fmt::format("{}: {} ({}{}){}", one_line(status.state, 20), one_line(status.reason, 200), at, code,
                     hint);
}

std::string holder_words(const std::optional<LockHolder>& holder) {
  if (!holder) return "nobody";
  const auto alive = lives(*holder);
  const char* known = !alive ? " (another host: see its heartbeat)" : *alive ? "" : " (gone)";
  return describe(*holder) + known;
}

/// What the state file names and is neither there nor set aside; and what it names with another basename,
/// where there is nothing else to be seen.
std::vector<std::string> what_is_missing(Directory& directory, const std::string& basename,
                                         bool nothing_found, const std::vector<std::string>& set_aside) {
  const auto named = [&] { return read_state_file(directory).state.value_or(StateFile{}).checkpoints; };
  std::vector<std::string> problems;
  for (const CheckpointRecord& record : named()) {
    const auto of_it = [&](const std::string& name) { return name.starts_with(record.file + "."); };
    if (std::any_of(set_aside.begin(), set_aside.end(), of_it)) continue;
    if (!directory.exists(record.file)) {
      // A training that deletes says so in the state file first.
      const auto again = named();
      const auto same = [&](const CheckpointRecord& other) { return other.file == record.file; };
      if (std::none_of(again.begin(), again.end(), same)) continue;
      problems.push_back(fmt::format("{} is named in {}, and is not there", record.file, kStateFileName));
    } else if (nothing_found && !parse_file_name(basename, record.file)) {
      problems.push_back(
          fmt::format("{} has another basename; give it with --checkpoint_basename", record.file));
    }
  }
  return problems;
}

json directory_json(Directory& directory, const std::vector<Found>& all,
                    const std::vector<std::string>& set_aside, const std::vector<std::string>& missing) {
  const auto holder = read_lock(directory);
  const auto status = read_status(directory);
  json document = {{"directory", directory.path().string()},
                   {"checkpoints", json::array()},
                   {"set_aside", set_aside},
                   {"problems", missing},
                   {"status", nullptr},
                   {"holder", nullptr}};
  for (const Found& found : all) {
    json checkpoint = {{"step", found.checkpoint.name.step},
                       {"file", found.checkpoint.file},
                       {"bytes", found.checkpoint.bytes},
                       {"verified", found.trailer.has_value()},
                       {"problem", nullptr},
                       {"saved_at", nullptr}};
    if (found.trailer) checkpoint["saved_at"] = found.trailer->saved_at;
    if (!found.trailer) checkpoint["problem"] = found.problem;
    document["checkpoints"].push_back(std::move(checkpoint));
  }
  if (status) {
    document["status"] = {{"state", status->state},
                          {"reason", status->reason},
                          {"global_step", status->global_step},
                          {"restarts", status->restarts},
                          {"exit_code", nullptr},
                          {"updated", status->updated},
                          {"words", status_words(*status, holder)}};
    if (status->exit_code) document["status"]["exit_code"] = *status->exit_code;
  }
  if (holder) {
    const auto alive = lives(*holder);
    document["holder"] = {{"host", holder->host},   {"pid", holder->pid}, {"job", holder->job},
                          {"since", holder->since}, {"alive", nullptr},   {"words", describe(*holder)}};
    if (alive) document["holder"]["alive"] = *alive;
  }
  return document;
}

void print_directory(Directory& directory, const std::vector<Found>& all,
                     const std::vector<std::string>& set_aside, const std::vector<std::string>& missing) {
  const auto holder = read_lock(directory);
  const auto status = read_status(directory);
  std::puts(directory.path().c_str());
  std::puts(
      fmt::format("  status  {}", status ? status_words(*status, holder) : "no run has left one").c_str());
  std::puts(fmt::format("  in use  {}", holder ? "by " + holder_words(holder) : "by nobody").c_str());
  if (all.empty()) {
    std::puts("  there is no checkpoint");
  } else {
    Table table({"file", "step", "size", "saved", "state"}, 1);
    for (const Found& found : all) {
      table.add({found.checkpoint.file, std::to_string(found.checkpoint.name.step),
                 size_text(found.checkpoint.bytes), found.trailer ? date(found.trailer->saved_at) : "-",
                 found.trailer ? "verified" : "DAMAGED"});
    }
    std::puts("");
    table.print();
    for (const Found& found : all) {
      if (!found.trailer) std::puts(fmt::format("  {}: {}", found.checkpoint.file, found.problem).c_str());
    }
  }
  for (const std::string& problem : missing) std::puts(fmt::format("  {}", problem).c_str());
  if (!set_aside.empty()) {
    std::puts("\n  set aside, read by nobody; delete them when you do not want them");
    for (const std::string& name : set_aside) std::puts(fmt::format("    {}", one_line(name, 200)).c_str());
  }
}

/// One path without --diff or --digest. Returns whether everything verified.
bool show(FileSystem& files, const std::string& path, const InspectOptions& options, json& documents) {
  const auto directory = directory_or_null(files, path);
  if (directory == nullptr) {
    try {
      const CheckpointFile file = open_checkpoint(files, path, Log(), options.key.get());
      if (options.verify) {
        const std::filesystem::path folder = std::filesystem::path(path).parent_path();
        check_structures(file, *files.open_directory(folder.empty() ? "." : folder), options.key.get());
      }
      if (options.as_json) {
        documents.push_back(options.verify ? digest_json(file) : file_json(file));
      } else if (options.verify) {
        std::puts(fmt::format("{}: verified, step {}", path, file.step()).c_str());
      } else {
        print_file(file);
      }
      return true;
    } catch (const DataError& error) {
      if (options.as_json) {
        documents.push_back({{"file", path}, {"problem", error.what()}});
      } else {
        std::puts(fmt::format("{}: DAMAGED: {}", path, error.what()).c_str());
      }
      return false;
    }
  }
  std::vector<Found> all;
  for (FoundCheckpoint& checkpoint : scan_checkpoints(*directory, options.basename)) {
    all.push_back(examine(*directory, std::move(checkpoint), options.key.get()));
    // One that a training deleted meanwhile is not there any more, and that is no damage.
    if (!all.back().trailer && !directory->exists(all.back().checkpoint.file)) all.pop_back();
  }
  std::vector<std::string> set_aside;
  for (const DirectoryEntry& entry : directory->list()) {
    if (is_set_aside(entry.name)) set_aside.push_back(entry.name);
  }
  std::sort(set_aside.begin(), set_aside.end());
  const auto missing = what_is_missing(*directory, options.basename, all.empty(), set_aside);
  if (options.as_json) {
    documents.push_back(directory_json(*directory, all, set_aside, missing));
  } else {
    print_directory(*directory, all, set_aside, missing);
  }
  return missing.empty() &&
         std::all_of(all.begin(), all.end(), [](const Found& found) { return found.trailer.has_value(); });
}

struct Comparison {
  std::string verdict;  ///< "equal", "differs", "only in A"...
  double max_difference = 0;
  std::uint64_t max_ulp = 0;  ///< floats only
  std::int64_t different = 0;
};

/// Numbers that are neighbours map to integers that are neighbours, over the sign of zero as well.
template <class Float, class Bits>
std::uint64_t ordered(Float value) {
  constexpr std::uint64_t kZero = std::uint64_t{1} << 63;
  const auto bits = std::bit_cast<Bits>(value);
  constexpr Bits kMagnitude = std::numeric_limits<Bits>::max() / 2;
  const std::uint64_t magnitude = bits & kMagnitude;
  return bits == magnitude ? kZero + magnitude : kZero - magnitude;
}

template <class Float, class Bits>
std::uint64_t ulp_between(Float left, Float right) {
  const auto a = ordered<Float, Bits>(left);
  const auto b = ordered<Float, Bits>(right);
  return a > b ? a - b : b - a;
}

bool is_float(const Entry& entry) {
  return entry.type == ElementType::f32 || entry.type == ElementType::f64;
}

Comparison compare(const Entry* a, const Entry* b) {
  Comparison result;
  if (a == nullptr) return {"only in B", 0, 0, 0};
  if (b == nullptr) return {"only in A", 0, 0, 0};
  if (a->type != b->type || (a->shape != b->shape && a->type != ElementType::text)) {
    result.verdict = fmt::format("{} {} and {} {}", to_string(a->type), to_string(a->shape),
                                 to_string(b->type), to_string(b->shape));
    return result;
  }
  if (a->type == ElementType::text) {
    constexpr std::size_t kWidth = 60;
    const bool same = text_of(*a) == text_of(*b);
    result.verdict =
        same ? "equal"
             : fmt::format("'{}' and '{}'", one_line(text_of(*a), kWidth), one_line(text_of(*b), kWidth));
    result.different = same ? 0 : 1;
    return result;
  }
  const auto count = static_cast<std::size_t>(element_count(a->shape));
  const std::size_t width = size_in_bytes(a->type);
  for (std::size_t i = 0; i < count; ++i) {
    if (std::memcmp(a->data + i * width, b->data + i * width, width) == 0) continue;
    const double left = as_number(*a, i);
    const double right = as_number(*b, i);
    if (std::isnan(left) && std::isnan(right)) continue;
    ++result.different;
    const double distance = std::abs(left - right);
    result.max_difference = std::isnan(distance) ? std::numeric_limits<double>::infinity()
                                                 : std::max(result.max_difference, distance);
    if (is_float(*a) && !std::isnan(distance)) {
      const std::uint64_t ulp =
          a->type == ElementType::f32
              ? ulp_between<float, std::uint32_t>(element<float>(*a, i), element<float>(*b, i))
              : ulp_between<double, std::uint64_t>(left, right);
      result.max_ulp = std::max(result.max_ulp, ulp);
    }
  }
  result.verdict = result.different == 0 ? "equal" : "differs";
  return result;
}

int diff(FileSystem& files, const InspectOptions& options, const Log& log) {
  const CheckpointFile a = open_checkpoint(files, options.paths[0], log, options.key.get(), options.basename);
  const CheckpointFile b = open_checkpoint(files, options.paths[1], log, options.key.get(), options.basename);
  std::map<std::string, std::pair<const Entry*, const Entry*>> both;
  for (const Entry& entry : a.entries()) both[entry.path].first = &entry;
  for (const Entry& entry : b.entries()) both[entry.path].second = &entry;
  Table table({"name", "", "elements", "max difference", "max ULP"}, 2);
  json tensors = json::array();
  std::size_t different = 0;
  for (const auto& [path, pair] : both) {
    const Comparison result = compare(pair.first, pair.second);
    const bool equal = result.verdict == "equal";
    if (!equal) ++different;
    const bool floats = pair.first != nullptr && is_float(*pair.first);
    if (options.as_json) {
      tensors.push_back({{"name", path},
                         {"verdict", result.verdict},
                         {"different", result.different},
                         {"max_difference", std::isfinite(result.max_difference) ? json(result.max_difference)
                                                                                 : json("infinite")},
                         {"max_ulp", floats ? json(result.max_ulp) : json(nullptr)}});
    } else if (equal && path.starts_with("/config/")) {
      // Only settings that differ are worth a line.
    } else if (result.verdict != "differs") {
      table.add({path, result.verdict});
    } else {
      table.add({path, result.verdict, std::to_string(result.different),
                 fmt::format("{:.4g}", result.max_difference),
                 floats ? std::to_string(result.max_ulp) : "-"});
    }
  }
  if (options.as_json) {
    const json document = {
        {"a", digest_json(a)}, {"b", digest_json(b)}, {"equal", different == 0}, {"tensors", tensors}};
    std::puts(document.dump(2, ' ', false, json::error_handler_t::replace).c_str());
  } else {
    std::puts(
        fmt::format("A  {} (step {})\nB  {} (step {})\n", a.name(), a.step(), b.name(), b.step()).c_str());
    table.print();
    std::puts(different == 0 ? "\nequal" : fmt::format("\n{} of {} differ", different, both.size()).c_str());
  }
  return different == 0 ? 0 : kDifferent;
}

void print_digests(FileSystem& files, const InspectOptions& options, const Log& log) {
  json documents = json::array();
  for (const std::string& path : options.paths) {
    const CheckpointFile file = open_checkpoint(files, path, log, options.key.get(), options.basename);
    if (options.as_json) {
      documents.push_back(digest_json(file));
    } else {
      std::puts(fmt::format("{}  {}\n{}  {}:/model/", file.digest().hex(), file.name(),
                            file.digest("/model/").hex(), file.name())
                    .c_str());
    }
    if (!options.digests) continue;
    for (const Entry& entry : file.entries()) {
      if (options.as_json) {
        documents.back()["tensors"][entry.path] = digest_of_tensor(entry).hex();
      } else {
        std::puts(fmt::format("{}  {}:{}", digest_of_tensor(entry).hex(), file.name(), entry.path).c_str());
      }
    }
  }
  if (options.as_json) std::puts(documents.dump(2, ' ', false, json::error_handler_t::replace).c_str());
}

/// The options, or a text to print instead.
std::pair<InspectOptions, std::string> parse(int argc, const char* const* argv) {
  InspectOptions o;
  std::string key_file;
  po::options_description shown("Options");
  shown.add_options()("verify", po::bool_switch(&o.verify),
                      "only say whether everything verifies; exit code 65 if not")(
      "digest", po::bool_switch(&o.digest),
      "digest of the content (name, type, shape and bytes of everything; independent of layout and ranks) "
      "and of /model/ alone, which is the parameters_digest of a report")(
      "digests", po::bool_switch(&o.digests), "the same, and the digest of each tensor")(
      "diff", po::bool_switch(&o.diff),
      "compare two checkpoints tensor by tensor, with step and settings; any NaN equals any NaN. Exit code "
      "0: "
      "equal, 1: different")("json", po::bool_switch(&o.as_json), "print JSON")(
      "export", po::value(&o.export_to),
      "write all of a checkpoint to this new file, NAME.npz (numpy) or NAME.safetensors")(
      "names", po::value(&o.names)->default_value(o.names),
      "export: lockstep, or torch: a .safetensors file of the names and layout of a PyTorch state_dict")(
      "key_file", po::value(&key_file), "accept only what was signed with this secret")(
      "checkpoint_basename", po::value(&o.basename)->default_value(o.basename),
      "what the names of checkpoints in a directory begin with")("help", "this text")("version",
                                                                                      "name and version");
  po::options_description hidden;
  hidden.add_options()("path", po::value(&o.paths), "");
  po::options_description all;
  all.add(shown).add(hidden);
  po::positional_options_description positional;
  positional.add("path", -1);
  const auto values = parse_options(argc, argv, all, positional);
  if (values.count("help") != 0) {
    std::ostringstream text;
    text << "Shows what checkpoints and their directories hold. Needs no MPI and changes nothing.\n\n"
            "  lockstep-inspect runs/a                        the checkpoints of a directory, and its run\n"
            "  lockstep-inspect runs/a/ckpt-00001200.h5       the tensors and settings of one\n"
            "  lockstep-inspect --verify runs/a runs/b        exit code 65 if anything is damaged\n"
            "  lockstep-inspect --digest runs/a               of the newest good checkpoint\n"
            "  lockstep-inspect --diff runs/a runs/b          exit code 1 if they differ\n"
            "  lockstep-inspect --export a.npz runs/a         for numpy; a.safetensors for others\n\n"
         << shown
         << "\nExit codes: 0 done (--diff: equal), 1 --diff: different, 64 usage, 65 missing or damaged,\n"
            "74 input/output.\n";
    return {o, text.str()};
  }
  if (values.count("version") != 0) return {o, version_text() + "\n"};
  if (o.paths.empty())
    throw UsageError("say what to look at: a checkpoint directory or a checkpoint; see --help");
  o.digest = o.digest || o.digests;
  const bool exports = !o.export_to.empty();
  if (o.verify + o.digest + o.diff + exports > 1) {
    throw UsageError("give one of --verify, --digest, --digests, --diff and --export");
  }
  if (exports && o.paths.size() != 1) {
    throw UsageError(fmt::format("--export takes one checkpoint; {} are named", o.paths.size()));
  }
  PosixFileSystem files;
  o.key = load_key(files, key_file);
  if (o.diff && o.paths.size() != 2) {
    throw UsageError(fmt::format("--diff compares two checkpoints; {} are named", o.paths.size()));
  }
  return {o, ""};
}

int run(int argc, const char* const* argv) {
  const auto [options, text] = parse(argc, argv);
  if (!text.empty()) {
    std::fputs(text.c_str(), stdout);
    return 0;
  }
  PosixFileSystem files;
  const Log log = Log::standard("");
  if (options.diff) return diff(files, options, log);
  if (!options.export_to.empty()) {
    export_tensors(open_checkpoint(files, options.paths[0], log, options.key.get(), options.basename), files,
                   options.export_to, tensor_names(options.names));
    return 0;
  }
  if (options.digest) {
    print_digests(files, options, log);
    return 0;
  }
  bool good = true;
  json documents = json::array();
  for (const std::string& path : options.paths) {
    if (!options.as_json && &path != &options.paths.front()) std::puts("");
    // A file was asked for by name: then damage is a failure without --verify too.
    const bool is_file = directory_or_null(files, path) == nullptr;
    const bool verified = show(files, path, options, documents);
    if (!verified && (options.verify || is_file)) good = false;
  }
  if (options.as_json) std::puts(documents.dump(2, ' ', false, json::error_handler_t::replace).c_str());
  return good ? 0 : static_cast<int>(ExitCode::data);
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
