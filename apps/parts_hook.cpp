#include "parts_hook.hpp"

#include <algorithm>

namespace lockstep {

// What other hooks did after the step belongs to it, too, so it is taken when the next one begins.
void PartsHook::before_run(RunContext& context) {
  collect(context.trace());
  context.trace().start(context.clock());
}

void PartsHook::after_run(RunContext& context, const RunValues& values) {
  static_cast<void>(context);
  // Of the step before.
  const Tally& tally = values.tally();
  if (first_ || tally.wait_min_rank() == Tally::kNobody) return;
  ++waits_;
  waited_ += tally.wait_min();
}

double PartsHook::wait_of_last() const {
  return waited_ / static_cast<double>(std::max<std::int64_t>(waits_, 1));
}

void PartsHook::end(RunContext& context) {
  collect(context.trace());
  context.trace().stop();
}

void PartsHook::collect(StepTrace& trace) {
  if (!trace.on()) return;
  if (first_) {
    first_ = false;
    return;
  }
  ++counted_;
  for (const StepTrace::Phase& phase : trace.phases()) {
    const auto found = seconds_.find(phase.name);
    const double spent = (phase.end - phase.begin).count();
    if (found != seconds_.end()) {
      found->second += spent;
    } else {
      seconds_.emplace(phase.name, spent);
    }
  }
}

std::map<std::string, double> PartsHook::means() const {
  std::map<std::string, double> means;
  for (const auto& [name, seconds] : seconds_) {
    means[name] = seconds / static_cast<double>(std::max<std::int64_t>(counted_, 1));
  }
  return means;
}

}  // namespace lockstep
