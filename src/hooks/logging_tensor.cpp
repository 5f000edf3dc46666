#include <cmath>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/logging_tensor.hpp>

namespace lockstep {

namespace {

/// Whole numbers, such as steps, with all their digits.
std::string shown_number(double value) {
  constexpr double kExact = 9007199254740992;  // 2^53
  const bool whole = std::abs(value) < kExact && value == std::trunc(value);
  return whole ? fmt::format("{:.0f}", value) : fmt::format("{:.6g}", value);
}

}  // namespace

LoggingTensorHook::LoggingTensorHook(Options options) : options_(std::move(options)) {
  if (options_.every_n_iter && options_.every_n_secs) {
    throw UsageError("LoggingTensorHook takes one of every_n_iter and every_n_secs");
  }
  if (!options_.every_n_iter && !options_.every_n_secs && !options_.at_end) {
    throw UsageError("LoggingTensorHook needs every_n_iter, every_n_secs or at_end");
  }
  if (options_.every_n_iter || options_.every_n_secs)
    timer_.emplace(options_.every_n_secs, options_.every_n_iter);
}

std::string LoggingTensorHook::describe() const {
  return fmt::format("logging_tensor{}{}{}", options_.values.empty() ? "" : " of ",
                     fmt::join(options_.values, ", "), timer_ ? " " + timer_->describe() : "") +
         (options_.at_end ? " at end" : "");
}

void LoggingTensorHook::begin(RunContext& context) {
  runs_ = 0;
  if (!timer_) return;
  timer_->reset();
  context.agree_on(*timer_);
}

void LoggingTensorHook::after_run(RunContext& context, const RunValues& values) {
  if (runs_ == 0) check_names(values.values());
  last_ = values.values();
  last_step_ = values.global_step();
  if (timer_ && timer_->should_trigger_for_step(runs_)) {
    write(context, timer_->update_last_triggered_step(runs_));
  }
  ++runs_;
}

void LoggingTensorHook::end(RunContext& context) {
  if (options_.at_end && runs_ > 0) write(context, std::nullopt);
}

/// On all ranks, since the values are the same on all.
void LoggingTensorHook::check_names(const StepValues& values) const {
  for (const std::string& name : options_.values) {
    if (name == "step" || values.find(name)) continue;
    std::string known = "step";
    for (const auto& value : values.all()) known += fmt::format(", {}", value.name);
    throw UsageError(fmt::format("LoggingTensorHook has no value '{}' to log; choose from {}", name, known));
  }
}

void LoggingTensorHook::write(RunContext& context, std::optional<SecondOrStepTimer::Elapsed> elapsed) const {
  if (!context.is_chief()) return;
  StepValues shown = last_;
  if (!options_.values.empty()) {
    shown = StepValues();
    for (const std::string& name : options_.values) {
      if (name == "step") {
        shown.set("step", static_cast<double>(last_step_));
      } else if (const auto value = last_.find(name)) {
        shown.set(name, *value);
      }
    }
  }
  if (options_.formatter) {
    context.log().info(options_.formatter(shown));
    return;
  }
  std::string line;
  for (const auto& value : shown.all()) {
    line += fmt::format("{}{} = {}", line.empty() ? "" : ", ", value.name, shown_number(value.value));
  }
  if (elapsed) line += fmt::format(" ({:.3f} sec)", elapsed->seconds.count());
  context.log().info(line);
}

}  // namespace lockstep
