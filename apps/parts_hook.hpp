#pragma once

#include <cstdint>
#include <map>
#include <string>

#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Adds up what the parts of a step take on this rank: the phases of the step's trace. Without the first step
/// after the session was made, which has things of its own to do.
///
/// Local: decides and sends nothing. Not together with a ProfilerHook, which has the trace for itself.
class PartsHook final : public SessionRunHook {
 public:
  std::string_view name() const override { return "parts"; }
  void before_run(RunContext& context) override;
  void after_run(RunContext& context, const RunValues& values) override;
  void end(RunContext& context) override;

  std::int64_t steps() const { return counted_; }

  /// Mean seconds a step, by the name of the phase.
  std::map<std::string, double> means() const;

  /// Mean seconds a step that the rank waited which came last: no rank was missing then, so that is what
  /// messages take. The same on all ranks.
  double wait_of_last() const;

 private:
  void collect(StepTrace& trace);

  std::int64_t counted_ = 0;
  std::int64_t waits_ = 0;
  double waited_ = 0;
  bool first_ = true;
  std::map<std::string, double, std::less<>> seconds_;
};

}  // namespace lockstep
