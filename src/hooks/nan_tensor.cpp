#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/nan_tensor.hpp>

namespace lockstep {

NanTensorHook::NanTensorHook(std::string value, bool fail_on_nan_loss)
    : value_(std::move(value)), fail_(fail_on_nan_loss) {}

std::string NanTensorHook::describe() const {
  return fmt::format("nan_tensor of {}, {}", value_, fail_ ? "fails" : "stops");
}

void NanTensorHook::after_run(RunContext& context, const RunValues& values) {
  const auto value = values.values().find(value_);
  // A rank says it of every value that it returns, too; those of other names are not this hook's.
  const bool others = value && std::isfinite(*value) &&
                      std::ranges::any_of(values.values().all(),
                                          [](const auto& other) { return !std::isfinite(other.value); });
  const bool said = !others && values.tally().anyone_says(Says::not_finite);
  if (!value && !said) {
    throw UsageError(
        fmt::format("NanTensorHook has no value '{}' to watch: the step does not return it", value_));
  }
  if (!said && std::isfinite(*value)) return;
  const bool is_value = value && !std::isfinite(*value);
  const std::string problem = fmt::format(
      "{} at step {}{}",
      is_value ? fmt::format("{} is not finite ({})", value_, *value) : "a value or gradient is not finite",
      values.global_step(),
      said ? fmt::format(", first on rank {}", values.tally().first_rank(Says::not_finite)) : "");
  if (fail_) {
    throw TrainingError(
        problem +
        "; lower the learning rate or look at the data of this step. The newest checkpoint is from "
        "before");
  }
  context.log().warn(problem);
  context.request_stop_all(problem);
}

}  // namespace lockstep
