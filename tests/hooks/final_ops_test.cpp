#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/end_of_input.hpp>
#include <lockstep/hooks/final_ops.hpp>

#include "fake_context.hpp"

namespace lockstep {

TEST_CASE("final ops run once, at the end, and never after an error") {
  test::FakeContext context;
  int calls = 0;
  FinalOpsHook hook([&](RunContext& now) {
    ++calls;
    return FinalOpsHook::Values{{"step", {static_cast<double>(now.global_step())}}};
  });
  hook.begin(context);
  hook.after_create_session(context);
  context.step(hook);
  context.step(hook);
  hook.on_error(context, std::runtime_error("any"));
  CHECK(calls == 0);
  CHECK(!hook.final_ops_values());
  hook.end(context);
  CHECK(calls == 1);
  CHECK(hook.final_ops_values()->at("step") == std::vector<double>{2});
  CHECK_THROWS_AS(FinalOpsHook(nullptr), UsageError);
}

TEST_CASE("of a final op that reads the input of the run it is said why it fails; of other errors nothing") {
  test::FakeContext context;
  FinalOpsHook reads([](RunContext&) -> FinalOpsHook::Values { throw EndOfInput(); });
  CHECK_THROWS_AS(reads.end(context), EndOfInput);
  CHECK(context.messages->lines.size() == 1);
  CHECK(context.messages->lines.front().starts_with("a final op reads the input of the run"));
  CHECK(!reads.final_ops_values());
  FinalOpsHook fails([](RunContext&) -> FinalOpsHook::Values { throw DataError("other"); });
  CHECK_THROWS_AS(fails.end(context), DataError);
  CHECK(context.messages->lines.size() == 1);
}

}  // namespace lockstep
