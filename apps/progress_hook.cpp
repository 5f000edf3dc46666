#include "progress_hook.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include <fmt/format.h>

namespace lockstep {
namespace {

std::string duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::ceil(seconds));
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string bar(double done) {
  constexpr int kWidth = 24;
  const int full = static_cast<int>(std::clamp(done, 0.0, 1.0) * kWidth);
  return std::string(static_cast<std::size_t>(full), '#') +
         std::string(static_cast<std::size_t>(kWidth - full), '.');
}

}  // namespace

void ProgressHook::after_create_session(RunContext& context) {
  shown_step_ = context.global_step();
  shown_at_ = context.clock().now();
}

void ProgressHook::after_run(RunContext& context, const RunValues& values) {
  const bool terminal = context.log().interactive();
  const Seconds every{terminal ? 0.2 : 5.0};
  const Seconds now = context.clock().now();
  const std::int64_t step = values.global_step();
  const bool last = step >= last_step_;
  if (now - shown_at_ < every && !last) return;
  const double rate = static_cast<double>(step - shown_step_) / std::max((now - shown_at_).count(), 1e-9);
  const std::string loss = fmt::format("{:.4f}", values.values().find("loss").value_or(NAN));
  const std::string left = duration(static_cast<double>(last_step_ - step) / rate);
  const double samples = rate * static_cast<double>(global_batch_);
  shown_step_ = step;
  shown_at_ = now;
  if (terminal && !last) {
    context.log().progress(fmt::format("[{}] step {}/{}  loss {}  {:.0f} samples/s  {} left",
                                       bar(static_cast<double>(step) / static_cast<double>(last_step_)), step,
                                       last_step_, loss, samples, left));
  } else {
    context.log().info(fmt::format("step {}/{}: loss {}, {:.0f} samples/s{}", step, last_step_, loss, samples,
                                   last ? "" : ", " + left + " left"));
  }
}

}  // namespace lockstep
