#include <cmath>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/early_stopping.hpp>

namespace lockstep {

EarlyStoppingHook::EarlyStoppingHook(Options options) : options_(std::move(options)) {
  if (options_.metric.empty()) throw UsageError("EarlyStoppingHook needs the name of a value to watch");
  if (options_.patience < 1) {
    throw UsageError(
        fmt::format("EarlyStoppingHook has a patience of {} steps; give at least 1", options_.patience));
  }
  if (!(options_.min_delta >= 0 && std::isfinite(options_.min_delta))) {
    throw UsageError(fmt::format("EarlyStoppingHook has a min_delta of {}; give a number of at least 0",
                                 options_.min_delta));
  }
}

std::string EarlyStoppingHook::describe() const {
  return fmt::format("early_stopping when {} does not {} by more than {} in {} steps", options_.metric,
                     options_.mode == Mode::min ? "fall" : "rise", options_.min_delta, options_.patience);
}

void EarlyStoppingHook::begin(RunContext& context) {
  kept_ = context.state().keep("early_stopping/" + options_.metric, kKept);
}

void EarlyStoppingHook::after_create_session(RunContext& context) {
  stop_if_stale(context);
}

void EarlyStoppingHook::after_run(RunContext& context, const RunValues& values) {
  const auto value = values.values().find(options_.metric);
  if (!value) {
    throw UsageError(fmt::format("EarlyStoppingHook has no value '{}' to watch: the step does not return it",
                                 options_.metric));
  }
  const bool falls = options_.mode == Mode::min;
  const auto step = static_cast<double>(values.global_step());
  if (kept_[kSeen] == 0) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    kept_[kSeen] = 1;
    kept_[kBest] = falls ? kInfinity : -kInfinity;
    kept_[kBestStep] = step;
  }
  const double best = kept_[kBest];
  if (falls ? *value < best - options_.min_delta : *value > best + options_.min_delta) {
    kept_[kBest] = *value;
    kept_[kBestStep] = step;
  }
  stop_if_stale(context);
}

void EarlyStoppingHook::stop_if_stale(RunContext& context) const {
  if (kept_[kSeen] == 0 || context.global_step() - best_step() < options_.patience) return;
  context.request_stop_all(fmt::format("early stopping: the best {} is {:.6g}, of step {}, {} steps ago",
                                       options_.metric, best(), best_step(),
                                       context.global_step() - best_step()));
}

}  // namespace lockstep
