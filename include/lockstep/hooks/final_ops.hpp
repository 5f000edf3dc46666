#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Computes something once from the state in which a run ends cleanly (tf.train.FinalOpsHook), before the
/// final save.
///
/// Logically collective: every rank adds one. The function is called on every rank and must not communicate;
/// what it computes from the state is the same on all.
class FinalOpsHook final : public SessionRunHook {
 public:
  /// Results by name: one number, or several of one tensor.
  using Values = std::map<std::string, std::vector<double>>;
  using FinalOps = std::function<Values(RunContext&)>;

  /// A null function: UsageError.
  explicit FinalOpsHook(FinalOps final_ops);

  std::string_view name() const override { return "final_ops"; }

  /// Passes on what the function throws. Of an EndOfInput it says that the input of a run that is over
  /// cannot be used here.
  void end(RunContext& context) override;

  /// nullopt until the run has ended cleanly. Local.
  const std::optional<Values>& final_ops_values() const noexcept { return values_; }

 private:
  FinalOps final_ops_;
  std::optional<Values> values_;
};

}  // namespace lockstep
