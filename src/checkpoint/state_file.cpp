#include <algorithm>
#include <cerrno>
#include <cmath>
#include <exception>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/state_file.hpp>
#include <lockstep/checkpoint/trailer.hpp>

namespace lockstep {
namespace {

using nlohmann::json;

constexpr std::int64_t kFormat = 1;
constexpr std::uint64_t kMaxStateFileBytes = std::uint64_t{64} << 20;
constexpr std::size_t kDigestDigits = 32;

struct Problem {
  std::string text;
};

const json& member(const json& object, const char* key) {
  if (!object.is_object() || !object.contains(key)) throw Problem{fmt::format("'{}' is missing", key)};
  return object.at(key);
}

template <class Number>
Number number(const json& object, const char* key) {
  const json& value = member(object, key);
  const bool good = std::is_floating_point_v<Number> ? value.is_number()
                    : std::is_unsigned_v<Number>     ? value.is_number_unsigned()
                                                     : value.is_number_integer();
  if (!good) throw Problem{fmt::format("'{}' is not the number that it should be", key)};
  return value.get<Number>();
}

CheckpointRecord record_from(const json& object) {
  CheckpointRecord record;
  record.step = number<std::int64_t>(object, "step");
  record.bytes = number<std::uint64_t>(object, "bytes");
  record.token = number<std::uint64_t>(object, "token");
  record.time = number<double>(object, "time");
  const json& file = member(object, "file");
  const json& digest = member(object, "digest");
  const json& preserved = member(object, "preserved");
  if (!file.is_string() || !is_plain_name(file.get_ref<const std::string&>())) {
    throw Problem{"a file name is not a plain base name"};
  }
  if (!digest.is_string() || digest.get_ref<const std::string&>().size() != kDigestDigits) {
    throw Problem{"a digest has not 32 digits"};
  }
  if (!preserved.is_boolean()) throw Problem{"'preserved' is neither true nor false"};
  if (record.step < 0 || !std::isfinite(record.time)) throw Problem{"a step or time is out of range"};
  if (const auto metric = object.find("metric"); metric != object.end() && !metric->is_null()) {
    const json& name = member(*metric, "name");
    if (!name.is_string() || name.get_ref<const std::string&>().size() > Metric::kMaxName) {
      throw Problem{"the name of a metric is none"};
    }
    record.metric = {name.get<std::string>(), number<double>(*metric, "value")};
  }
  record.file = file.get<std::string>();
  record.digest = digest.get<std::string>();
  record.preserved = preserved.get<bool>();
  return record;
}

RetiredCheckpoint retired_from(const json& object) {
  const json& file = member(object, "file");
  const json& digest = member(object, "digest");
  if (!file.is_string() || !is_plain_name(file.get_ref<const std::string&>())) {
    throw Problem{"the name of what is to be deleted is not a plain base name"};
  }
  if (!digest.is_string() || digest.get_ref<const std::string&>().size() != kDigestDigits) {
    throw Problem{"a digest of what is to be deleted has not 32 digits"};
  }
  return {file.get<std::string>(), digest.get<std::string>()};
}

bool older(const CheckpointRecord& left, const CheckpointRecord& right, const std::string& basename) {
  return parse_file_name(basename, left.file) < parse_file_name(basename, right.file);
}

}  // namespace

CheckpointRecord record_of(const std::string& file, const Trailer& trailer) {
  return {trailer.step,     file,  trailer.digest.hex(), trailer.file_bytes, trailer.token,
          trailer.saved_at, false, trailer.metric};
}

bool is_fenced(const StateFile& state, const std::string& file, const Trailer& trailer) {
  if (trailer.token >= state.token) return false;
  const auto listed = [&](const CheckpointRecord& record) { return record.file == file; };
  const RetiredCheckpoint own{file, trailer.digest.hex()};
  return std::ranges::none_of(state.checkpoints, listed) &&
         std::ranges::find(state.retired, own) == state.retired.end();
}

namespace {

constexpr const char* kSeal = "seal";
constexpr const char* kSignature = "signature";

/// What seal and signature are made of: everything else that the document says.
std::string sealed_text(json document) {
  document.erase(kSeal);
  document.erase(kSignature);
  return document.dump();
}

std::string seal_of(const std::string& text) {
  return digest_of(std::as_bytes(std::span(text))).hex();
}

std::string signature_of(const std::string& text, const MacKey& key) {
  Mac mac(key);
  mac.update(std::as_bytes(std::span(text)));
  return fmt::format("{:02x}", fmt::join(mac.finish(), ""));
}

/// False for what a fault of memory or disk, a hand or another program has changed; with a key also for what
/// somebody wrote who does not have it.
bool proves_itself(const json& document, const MacKey* key) {
  const std::string text = sealed_text(document);
  const auto says = [&](const char* member, const std::string& wanted) {
    const auto found = document.find(member);
    return found != document.end() && found->is_string() && found->get_ref<const std::string&>() == wanted;
  };
  return says(kSeal, seal_of(text)) && (key == nullptr || says(kSignature, signature_of(text, *key)));
}

}  // namespace

std::string to_json(const StateFile& state, const MacKey* key) {
  json checkpoints = json::array();
  for (const CheckpointRecord& record : state.checkpoints) {
    json metric = nullptr;
    // What is not finite has no place in JSON, and is no candidate for the best.
    if (std::isfinite(record.metric.value)) {
      metric = {{"name", record.metric.name}, {"value", record.metric.value}};
    }
    checkpoints.push_back({{"step", record.step},
                           {"file", record.file},
                           {"digest", record.digest},
                           {"bytes", record.bytes},
                           {"token", record.token},
                           {"time", record.time},
                           {"preserved", record.preserved},
                           {"metric", std::move(metric)}});
  }
  json document = {{"format", kFormat},
                   {"token", state.token},
                   {"checkpoints", std::move(checkpoints)},
                   {"last_preserved", nullptr}};
  for (const RetiredCheckpoint& retired : state.retired) {
    document["retired"].push_back({{"file", retired.file}, {"digest", retired.digest}});
  }
  if (state.last_preserved) document["last_preserved"] = *state.last_preserved;
  if (!state.checkpoints.empty()) document["latest"] = state.checkpoints.back().file;
  const std::string text = sealed_text(document);
  document[kSeal] = seal_of(text);
  if (key != nullptr) document[kSignature] = signature_of(text, *key);
  return document.dump(1) + "\n";
}

ParsedStateFile parse_state_file(std::span<const std::byte> bytes, const MacKey* key) {
  try {
    // Nesting is bounded before the parser sees it: it needs stack for each level.
    constexpr int kMaxNesting = 8;
    const auto* text = reinterpret_cast<const char*>(bytes.data());
    const auto shallow = [](int depth, json::parse_event_t, json&) -> bool {
      if (depth > kMaxNesting) throw Problem{"it is nested too deeply"};
      return true;
    };
    const json document = json::parse(text, text + bytes.size(), shallow);
    if (const auto format = number<std::int64_t>(document, "format"); format != kFormat) {
      throw Problem{fmt::format("format {} (this program reads {})", format, kFormat)};
    }
    StateFile state;
    if (document.contains("token")) state.token = number<std::uint64_t>(document, "token");
    if (!proves_itself(document, key)) state.token = 0;
    const json& checkpoints = member(document, "checkpoints");
    if (!checkpoints.is_array()) throw Problem{"'checkpoints' is no list"};
    for (const json& object : checkpoints) state.checkpoints.push_back(record_from(object));
    if (const auto retired = document.find("retired"); retired != document.end()) {
      if (!retired->is_array()) throw Problem{"'retired' is no list"};
      for (const json& object : *retired) state.retired.push_back(retired_from(object));
    }
    if (const json& last = member(document, "last_preserved"); !last.is_null()) {
      state.last_preserved = number<double>(document, "last_preserved");
      if (!std::isfinite(*state.last_preserved)) throw Problem{"'last_preserved' is out of range"};
    }
    return {std::move(state), ""};
  } catch (const Problem& problem) {
    return {std::nullopt, problem.text};
  } catch (const std::exception&) {
    return {std::nullopt, "it is not JSON"};
  }
}

ParsedStateFile read_state_file(Directory& directory, const MacKey* key) {
  const std::string name(kStateFileName);
  try {
    const auto file = directory.open(name);
    return parse_state_file(read_all(*file, kMaxStateFileBytes), key);
  } catch (const FileError& error) {
    if (error.code() == ENOENT) return {std::nullopt, "it is missing"};
    return {std::nullopt, error.what()};
  } catch (const DataError& error) {
    return {std::nullopt, error.what()};
  }
}

void write_state_file(Directory& directory, const StateFile& state, const MacKey* key) {
  const std::string text = to_json(state, key);
  const std::string name(kStateFileName);
  try {
    replace_file(directory, name, std::as_bytes(std::span(text)));
  } catch (const FileError& error) {
    if (error.code() != EISDIR) throw;
    // Somebody made a folder of that name. It goes aside like everything that is in the way.
    int k = 1;
    while (directory.exists(damaged_name(name, k))) ++k;
    directory.rename(name, damaged_name(name, k));
    replace_file(directory, name, std::as_bytes(std::span(text)));
  }
}

std::vector<FoundCheckpoint> scan_checkpoints(Directory& directory, const std::string& basename) {
  std::vector<FoundCheckpoint> found;
  for (DirectoryEntry& entry : directory.list()) {
    const auto name = parse_file_name(basename, entry.name);
    if (name) found.push_back({*name, std::move(entry.name), entry.size});
  }
  std::sort(found.begin(), found.end(),
            [](const FoundCheckpoint& left, const FoundCheckpoint& right) { return left.name < right.name; });
  return found;
}

std::vector<FoundCheckpoint> scan_checkpoints(Directory& directory, const std::string& basename,
                                              const StateFile& known) {
  auto found = scan_checkpoints(directory, basename);
  const std::size_t listed = found.size();
  for (const CheckpointRecord& record : known.checkpoints) {
    const auto name = parse_file_name(basename, record.file);
    const auto has = [&](const FoundCheckpoint& checkpoint) { return checkpoint.file == record.file; };
    if (!name || std::any_of(found.begin(), found.end(), has) || !directory.exists(record.file)) continue;
    found.push_back({*name, record.file, record.bytes});
  }
  if (found.size() != listed) {
    std::sort(found.begin(), found.end(), [](const FoundCheckpoint& left, const FoundCheckpoint& right) {
      return left.name < right.name;
    });
  }
  return found;
}

StateFile load_state(Directory& directory, const std::string& basename, const Log& log, const MacKey* key) {
  const ParsedStateFile hint = read_state_file(directory, key);
  const auto found = scan_checkpoints(directory, basename, hint.state.value_or(StateFile{}));
  if (!hint.state && !found.empty()) {
    log.warn(fmt::format("{} is of no use ({}); it is rebuilt from the {} checkpoints in the directory",
                         kStateFileName, hint.problem, found.size()));
  }
  StateFile state;
  for (const FoundCheckpoint& checkpoint : found) {
    try {
      const auto file = directory.open(checkpoint.file);
      const Trailer trailer = read_trailer(*file, checkpoint.file);
      if (trailer.step != checkpoint.name.step) {
        throw DataError(fmt::format("{} holds step {}", checkpoint.file, trailer.step));
      }
      if (hint.state && is_fenced(*hint.state, checkpoint.file, trailer)) {
        log.warn(fmt::format("{} is from a job that had lost the directory; it is left alone and not counted",
                             checkpoint.file));
        continue;
      }
      CheckpointRecord record = record_of(checkpoint.file, trailer);
      if (hint.state) {
        const auto& known = hint.state->checkpoints;
        const auto same = std::find_if(known.begin(), known.end(), [&](const CheckpointRecord& other) {
          return other.file == record.file && other.digest == record.digest;
        });
        if (same != known.end()) record.preserved = same->preserved;
      }
      state.checkpoints.push_back(std::move(record));
    } catch (const Error& error) {  // damaged, or no plain file
      log.warn(fmt::format("{}; it is left alone and not counted", error.what()));
    }
  }
  std::stable_sort(state.checkpoints.begin(), state.checkpoints.end(),
                   [&](const auto& left, const auto& right) { return older(left, right, basename); });
  if (hint.state) {
    state.last_preserved = hint.state->last_preserved;
    state.token = hint.state->token;
  }
  return state;
}

}  // namespace lockstep
