#pragma once

#include <cstdint>

#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Shows a person how training goes: on a terminal a line that renews itself (step, loss, samples a second,
/// time left), elsewhere a plain line now and then.
///
/// Chief only; decides nothing, so it may read the chief's clock.
class ProgressHook final : public SessionRunHook {
 public:
  ProgressHook(std::int64_t last_step, std::int64_t global_batch)
      : last_step_(last_step), global_batch_(global_batch) {}

  std::string_view name() const override { return "progress"; }
  void after_create_session(RunContext& context) override;
  void after_run(RunContext& context, const RunValues& values) override;

 private:
  std::int64_t last_step_;
  std::int64_t global_batch_;
  std::int64_t shown_step_ = 0;
  Seconds shown_at_{0};
};

}  // namespace lockstep
