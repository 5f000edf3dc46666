#pragma once

#include <string>

#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Ends the run, or asks to stop, when a value is NaN or infinite, or when any rank said that something of
/// its part of the step is (tf.train.NanTensorHook, which looks for NaN alone).
///
/// Logically collective: every rank adds one, with the same options. Sends nothing: values and tally are the
/// same on all ranks, so all take the same branch.
class NanTensorHook final : public SessionRunHook {
 public:
  explicit NanTensorHook(std::string value = "loss", bool fail_on_nan_loss = true);

  std::string_view name() const override { return "nan_tensor"; }
  std::string describe() const override;

  /// Throws TrainingError with the value, the step and the first rank where it was seen, or stops.
  void after_run(RunContext& context, const RunValues& values) override;

 private:
  std::string value_;
  bool fail_;
};

}  // namespace lockstep
