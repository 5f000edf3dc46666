#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <lockstep/base/error.hpp>
#include <lockstep/scaling/sample.hpp>

namespace lockstep {
namespace {

using nlohmann::json;

template <class Work>
auto as_data(const char* what, Work work) {
  try {
    return work();
  } catch (const json::exception& error) {
    throw DataError(fmt::format("{} cannot be read ({})", what, error.what()));
  }
}

void check(const ScalingSample& sample) {
  if (sample.ranks < 1 || sample.nodes < 1 || sample.nodes > sample.ranks || sample.micro_batch < 1 ||
      sample.global_batch < sample.micro_batch) {
    throw DataError(
        fmt::format("a run of {} ranks on {} nodes, of batches of {} in micro-batches of {}, is none",
                    sample.ranks, sample.nodes, sample.global_batch, sample.micro_batch));
  }
  constexpr std::int64_t kMostRanks = std::int64_t{1} << 30;
  constexpr std::int64_t kMostSamples = std::int64_t{1} << 40;
  if (sample.ranks > kMostRanks || sample.global_batch > kMostSamples) {
    throw DataError(fmt::format("no run has {} ranks and batches of {}", sample.ranks, sample.global_batch));
  }
  for (std::size_t i = 0; i < kStepParts.size(); ++i) {
    if (!(sample.part_seconds[i] >= 0)) {
      throw DataError(fmt::format("a part of a step, {}, took {} s; no time is below 0", kStepParts[i],
                                  sample.part_seconds[i]));
    }
  }
  if (!(sample.gradient_bytes >= 0)) {
    throw DataError(fmt::format("a gradient has {} bytes; none has fewer than 0", sample.gradient_bytes));
  }
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"') result += '"';
    result += c == '\n' ? ' ' : c;
  }
  return result + '"';
}

}  // namespace

std::string_view to_string(ScalingMode mode) {
  return mode == ScalingMode::strong ? "strong" : "weak";
}

ScalingSample sample_of_report(std::string_view text) {
  return as_data("a report", [&] {
    const json report = json::parse(text);
    ScalingSample sample;
    sample.ranks = report.at("ranks");
    sample.nodes = report.at("nodes");
    sample.global_batch = report.at("global_batch");
    sample.micro_batch = report.at("micro_batch");
    sample.steps = report.at("global_step");
    sample.digest = report.at("parameters_digest");
    sample.version = report.at("version");
    const double bytes = report.at("gradient_dtype") == "bf16" ? 2 : sizeof(float);
    sample.gradient_bytes = bytes * report.at("parameters").get<double>();
    const double speed = report.at("samples_per_second");
    if (!(speed > 0)) throw DataError("a run has too few steps to be timed; give it at least 2");
    sample.step_seconds = static_cast<double>(sample.global_batch) / speed;
    const json& parts = report.at("parts");
    const json& seconds = parts.at("seconds");
    const auto of = [&](const char* name) { return seconds.value(name, 0.0); };
    // Who came last waited for nobody, but for messages.
    const double wait = std::clamp(parts.at("wait_chief").get<double>() - parts.value("wait_last", 0.0), 0.0,
                                   std::max(0.0, of("reduce")));
    sample.part_seconds = {of("data"),          of("compute"),
                           of("reduce") - wait, of("begin") + wait + of("finish"),
                           of("update"),        of("checkpoint_saver")};
    double known = 0;
    for (const double part : sample.part_seconds) known += part;
    sample.part_seconds.back() = std::max(0.0, sample.step_seconds - known);
    check(sample);
    return sample;
  });
}

std::string to_json(const ScalingSample& sample) {
  json parts = json::object();
  for (std::size_t i = 0; i < kStepParts.size(); ++i) parts[kStepParts[i]] = sample.part_seconds[i];
  return json{{"mode", to_string(sample.mode)},
              {"ranks", sample.ranks},
              {"nodes", sample.nodes},
              {"repeat", sample.repeat},
              {"global_batch", sample.global_batch},
              {"micro_batch", sample.micro_batch},
              {"steps", sample.steps},
              {"gradient_bytes", sample.gradient_bytes},
              {"step_seconds", sample.step_seconds},
              {"parts", parts},
              {"digest", sample.digest},
              {"host", sample.host},
              {"machine", sample.machine},
              {"binding", sample.binding},
              {"version", sample.version},
              {"date", sample.date},
              {"load", sample.load}}
      .dump();
}

ScalingSample sample_from_json(std::string_view text) {
  return as_data("a sample", [&] {
    const json object = json::parse(text);
    ScalingSample sample;
    const std::string mode = object.at("mode");
    if (mode != "strong" && mode != "weak") throw DataError(fmt::format("a sample has the mode '{}'", mode));
    sample.mode = mode == "weak" ? ScalingMode::weak : ScalingMode::strong;
    sample.ranks = object.at("ranks");
    sample.nodes = object.at("nodes");
    sample.repeat = object.at("repeat");
    sample.global_batch = object.at("global_batch");
    sample.micro_batch = object.at("micro_batch");
    sample.steps = object.at("steps");
    sample.gradient_bytes = object.at("gradient_bytes");
    sample.step_seconds = object.at("step_seconds");
    for (std::size_t i = 0; i < kStepParts.size(); ++i) {
      sample.part_seconds[i] = object.at("parts").at(std::string(kStepParts[i]));
    }
    sample.digest = object.at("digest");
    sample.host = object.at("host");
    sample.machine = object.at("machine");
    sample.binding = object.at("binding");
    sample.version = object.at("version");
    sample.date = object.at("date");
    sample.load = object.at("load");
    check(sample);
    if (!(sample.step_seconds > 0)) throw DataError("a sample has no time");
    return sample;
  });
}

std::string to_csv(std::span<const ScalingSample> samples) {
  std::string csv = "mode,ranks,nodes,repeat,global_batch,micro_batch,steps,gradient_bytes,step_seconds";
  for (const std::string_view part : kStepParts) csv += fmt::format(",{}_seconds", part);
  csv += ",digest,host,machine,binding,version,date,load\n";
  for (const ScalingSample& s : samples) {
    csv += fmt::format("{},{},{},{},{},{},{},{},{}", to_string(s.mode), s.ranks, s.nodes, s.repeat,
                       s.global_batch, s.micro_batch, s.steps, s.gradient_bytes, s.step_seconds);
    for (const double part : s.part_seconds) csv += fmt::format(",{}", part);
    csv += fmt::format(",{},{},{},{},{},{},{}\n", s.digest, quoted(s.host), quoted(s.machine),
                       quoted(s.binding), quoted(s.version), s.date, s.load);
  }
  return csv;
}

}  // namespace lockstep
