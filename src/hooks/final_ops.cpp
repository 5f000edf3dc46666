#include <utility>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/end_of_input.hpp>
#include <lockstep/hooks/final_ops.hpp>

namespace lockstep {

FinalOpsHook::FinalOpsHook(FinalOps final_ops) : final_ops_(std::move(final_ops)) {
  if (!final_ops_) throw UsageError("FinalOpsHook needs a function that computes");
}

void FinalOpsHook::end(RunContext& context) {
  try {
    values_ = final_ops_(context);
  } catch (const EndOfInput&) {
    context.log().warn(
        "a final op reads the input of the run, which is at its end; compute it from the state alone, or "
        "from input of its own");
    throw;
  }
}

}  // namespace lockstep
