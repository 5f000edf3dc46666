#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <lockstep/hooks/profiler.hpp>

namespace lockstep {
namespace {

/// What one rank tells the chief: times in seconds from the moment when the ranks had met.
std::string told(const StepTrace& trace, Seconds fallback) {
  const Seconds met = trace.met().value_or(fallback);
  nlohmann::json phases = nlohmann::json::array();
  for (const StepTrace::Phase& phase : trace.phases()) {
    phases.push_back({std::string(phase.name), (phase.begin - met).count(), (phase.end - met).count()});
  }
  return nlohmann::json{{"met", met.count()}, {"phases", std::move(phases)}}.dump();
}

/// Microseconds, as traces have them, to the nanosecond.
double microseconds(double seconds) {
  return std::round(seconds * 1e9) / 1e3;
}

}  // namespace

ProfilerHook::ProfilerHook(Options options)
    : options_(std::move(options)), timer_(options_.save_secs, options_.save_steps) {}

void ProfilerHook::begin(RunContext& context) {
  context.agree_on(timer_);
  created_ = context.clock().now();
}

void ProfilerHook::before_run(RunContext& context) {
  // The first step only starts the timer. What the timer says of seconds came with the step before.
  if (!timer_.last_triggered_step()) return;
  if (timer_.should_trigger_for_step(context.global_step() + 1)) context.trace().start(context.clock());
}

void ProfilerHook::after_run(RunContext& context, const RunValues& values) {
  const std::int64_t step = values.global_step();
  if (!timer_.last_triggered_step()) {
    timer_.update_last_triggered_step(step - 1);
    return;
  }
  StepTrace& trace = context.trace();
  if (!trace.on()) return;
  trace.stop();
  timer_.update_last_triggered_step(step);
  context.gather(
      told(trace, context.clock().now()),
      [this, &context, step](const std::vector<std::string>& texts) { write(context, step, texts); });
}

void ProfilerHook::end(RunContext& context) {
  context.trace().stop();
}

void ProfilerHook::write(RunContext& context, std::int64_t step,
                         const std::vector<std::string>& texts) const {
  // Numbers of processes and threads begin at 1: viewers take 0 for the idle process.
  constexpr int kProcess = 1;
  nlohmann::json events = nlohmann::json::array();
  const auto name = [&](const char* what, int thread, const std::string& text) {
    events.push_back(
        {{"name", what}, {"ph", "M"}, {"pid", kProcess}, {"tid", thread}, {"args", {{"name", text}}}});
  };
  name("process_name", 1, fmt::format("lockstep, {} ranks", texts.size()));
  const double chief_met = nlohmann::json::parse(texts.front()).at("met").get<double>() - created_.count();
  std::map<std::string, double> slowest;
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    const int thread = static_cast<int>(rank) + 1;
    name("thread_name", thread, fmt::format("rank {}", rank));
    std::map<std::string, double> seconds;
    const auto parsed = nlohmann::json::parse(texts[rank]);
    for (const auto& phase : parsed.at("phases")) {
      const auto begin = phase.at(1).get<double>();
      const auto end = phase.at(2).get<double>();
      events.push_back({{"name", phase.at(0)},
                        {"cat", "step"},
                        {"ph", "X"},
                        {"pid", kProcess},
                        {"tid", thread},
                        {"ts", microseconds(chief_met + begin)},
                        {"dur", microseconds(end - begin)},
                        {"args", {{"step", step}}}});
      seconds[phase.at(0).get<std::string>()] += end - begin;
    }
    for (const auto& [phase, spent] : seconds) slowest[phase] = std::max(slowest[phase], spent);
  }
  const std::string text =
      nlohmann::json{{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}}.dump() + "\n";
  const std::string file = fmt::format("timeline-{}.json", step);
  try {
    const auto directory = options_.files->create_directory(options_.output_dir);
    replace_file(*directory, file, std::as_bytes(std::span(text)));
    context.log().info(fmt::format("profile of step {} in {}", step, (options_.output_dir / file).string()));
  } catch (const FileError& error) {
    context.log().warn(
        fmt::format("the profile of step {} is not written: {}; training goes on", step, error.what()));
  }
  for (const auto& [phase, spent] : slowest) context.summary().scalar("profile/" + phase, spent, step);
}

}  // namespace lockstep
