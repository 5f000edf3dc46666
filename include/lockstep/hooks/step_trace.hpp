#pragma once

#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <lockstep/base/clock.hpp>

namespace lockstep {

/// How one rank spends a step, while somebody (the ProfilerHook) wants to know: named phases with their begin
/// and end. When nobody does, a phase costs one test and no look at a clock.
///
/// Local. Used on the session's thread alone. Names must outlive the trace (string literals do).
class StepTrace {
 public:
  struct Phase {
    std::string_view name;
    Seconds begin{0};  ///< by this rank's clock
    Seconds end{0};
  };

  /// Ends its phase when it goes out of scope. Phases that overlap must nest.
  class Scope {
   public:
    Scope(StepTrace* trace, std::string_view name)
        : trace_(trace), name_(name), begin_(trace == nullptr ? Seconds{0} : trace->clock_->now()) {}
    ~Scope() {
      if (trace_ != nullptr && trace_->on())
        trace_->phases_.push_back({name_, begin_, trace_->clock_->now()});
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    StepTrace* trace_;
    std::string_view name_;
    Seconds begin_;
  };

  /// Begins to record and forgets what was recorded before. `clock` must live until `stop`.
  void start(const Clock& clock) {
    clock_ = &clock;
    phases_.clear();
    met_.reset();
  }
  bool on() const noexcept { return clock_ != nullptr; }
  void stop() noexcept { clock_ = nullptr; }

  [[nodiscard]] Scope phase(std::string_view name) { return {on() ? this : nullptr, name}; }

  /// For the session: the ranks have just met, which they do at nearly one time whatever their clocks say.
  void meet() {
    if (on()) met_ = clock_->now();
  }

  /// What has ended since `start`, in the order of the ends.
  const std::vector<Phase>& phases() const noexcept { return phases_; }
  std::optional<Seconds> met() const noexcept { return met_; }

 private:
  const Clock* clock_ = nullptr;
  std::vector<Phase> phases_;
  std::optional<Seconds> met_;
};

}  // namespace lockstep
