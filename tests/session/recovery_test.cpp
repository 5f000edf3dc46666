#include <atomic>
#include <thread>

#include <lockstep/base/executor.hpp>
#include <lockstep/session/looper_thread.hpp>

#include "edge_cases.hpp"
#include "ending_cases.hpp"
#include "mpi_ranks.hpp"

namespace lockstep {

void with_each(const std::function<void(const Communicator& world, bool me, int who)>& check) {
  test::each_rank_in_turn(check);
}

namespace {

/// Has a thread of its own in each session. In the first one, that of one rank is lost.
class Feeder final : public SessionRunHook {
 public:
  explicit Feeder(bool is_lost) : is_lost_(is_lost) {}

  std::string_view name() const override { return "feeder"; }

  void after_create_session(RunContext& context) override {
    const bool lost = std::exchange(is_lost_, false);
    threads.push_back(std::make_unique<LooperThread>(context.coordinator(), executor_, "feeder", std::nullopt,
                                                     [this, lost] {
                                                       if (!lost) {
                                                         std::this_thread::yield();
                                                         return;
                                                       }
                                                       while (!lose_now) std::this_thread::yield();
                                                       throw AbortedError("lost the feed");
                                                     }));
  }

  std::atomic<bool> lose_now = false;
  std::vector<std::unique_ptr<LooperThread>> threads;

 private:
  bool is_lost_;
  ThreadExecutor executor_;
};

}  // namespace

// TF: RecoverableSession.test_recovery_from_coordinator_exception
TEST_CASE("a real thread is lost: all ranks join theirs and go on from the newest checkpoint with new ones") {
  with_each([](const Communicator& world, bool me, int who) {
    const SharedFolder folder(world);
    Rank rank(world);
    auto options = rank.options(folder.path);
    options.save_checkpoint_steps = 2;
    options.config.clock = std::make_shared<SystemClock>();
    options.config.executor = std::make_shared<ThreadExecutor>();
    const auto feeder = std::make_shared<Feeder>(me);
    const auto recorder = std::make_shared<Recorder>();
    options.hooks = {feeder, recorder, std::make_shared<StopAtStepHook>(std::nullopt, 6)};
    MonitoredTrainingSession session(world, rank.state, options);
    Steps begun;
    session.train([&](StepContext& step) {
      begun.push_back(step.number());
      if (me && step.number() == 4 && !feeder->lose_now.exchange(true)) {
        session.coordinator().wait_for_stop();
      }
      return test::gradient_step(step);
    });
    // What came after the newest checkpoint, which may still have been on its way to the disk, is done again.
    CHECK(begun == Steps{0, 1, 2, 3, 4, 4, 5});
    CHECK(session.global_step() == 6);
    CHECK(rank.state.parameters()[0] == 1.0F - 6 * 0.25F);
    CHECK(recorder->count("after_create_session") == 2);
    CHECK(feeder->threads.size() == 2);
    for (const auto& thread : feeder->threads) CHECK(!thread->alive());
    if (world.is_chief()) {
      CHECK(folder.saved() == Steps{0, 2, 4, 6});
      CHECK(rank.messages->contain("rank " + std::to_string(who) + " failed at step 5 in thread 'feeder': " +
                                   "lost the feed; the session is made again from the newest checkpoint"));
    }
  });
}

}  // namespace lockstep
