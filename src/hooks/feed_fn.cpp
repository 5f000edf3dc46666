#include <utility>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/feed_fn.hpp>

namespace lockstep {

FeedFnHook::FeedFnHook(FeedFn feed_fn) : feed_fn_(std::move(feed_fn)) {
  if (!feed_fn_) throw UsageError("FeedFnHook needs a function that feeds");
}

void FeedFnHook::before_run(RunContext& context) {
  feed_fn_(context, context.feeds());
}

}  // namespace lockstep
