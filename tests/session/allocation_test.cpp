#include <cstdlib>
#include <new>

#include <lockstep/hooks/logging_tensor.hpp>
#include <lockstep/hooks/nan_tensor.hpp>
#include <lockstep/hooks/stop_at_step.hpp>

#include "session_support.hpp"

namespace {

std::int64_t allocations = 0;

void* counted(std::size_t bytes) {
  ++allocations;
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) {
  return counted(bytes);
}
void* operator new[](std::size_t bytes) {
  return counted(bytes);
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace lockstep {

TEST_CASE("a step allocates nothing, with all hooks, where none of them is due") {
  const auto world = Communicator::self();
  const test::SharedFolder folder(world);
  for (const auto kind : {ReductionKind::canonical, ReductionKind::mpi}) {
    test::Rank rank(world);
    auto options = rank.options(folder.path);
    options.config.reduction = kind;
    options.config.fresh = true;
    options.hooks = {std::make_shared<NanTensorHook>(),
                     std::make_shared<LoggingTensorHook>(
                         LoggingTensorHook::Options{.values = {}, .every_n_iter = 1000, .every_n_secs = {}}),
                     std::make_shared<StopAtStepHook>(std::nullopt, 1000)};
    MonitoredTrainingSession session(world, rank.state, options);
    const MonitoredTrainingSession::Step with_gradients = [](StepContext& step) -> StepValues {
      step.begin_micro_batch();
      step.end_micro_batch();
      step.reduce_micro_batches();
      step.finish();
      return {{"loss", 0.5}};
    };
    const MonitoredTrainingSession::Step plain = test::plain_step;
    for (const auto& step : {plain, with_gradients}) {
      session.run(step);
      session.run(step);
      const std::int64_t before = allocations;
      for (int i = 0; i < 50; ++i) session.run(step);
      CHECK(allocations == before);
    }
    session.close();
  }
}

}  // namespace lockstep
