#pragma once

#include <functional>

#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep {

/// Feeds the step with what a function says (tf.train.FeedFnHook): the step finds it in
/// `StepContext::feeds()`.
///
/// Logically collective: every rank adds one. The function is called on every rank before each step and may
/// feed other values on each; it must not communicate.
class FeedFnHook final : public SessionRunHook {
 public:
  using FeedFn = std::function<void(RunContext&, Feeds&)>;

  /// What `feed_fn` adds must stay as it is until the step has ended. A null one: UsageError.
  explicit FeedFnHook(FeedFn feed_fn);

  std::string_view name() const override { return "feed_fn"; }

  /// Local. Throws UsageError when it feeds what the caller of `run` or another hook feeds.
  void before_run(RunContext& context) override;

 private:
  FeedFn feed_fn_;
};

}  // namespace lockstep
