#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

#include <lockstep/session/looper_thread.hpp>

namespace lockstep {

/// Shared with the thread.
struct LooperThread::Loop {
  Loop(Coordinator its, Coordinator own, std::string its_name)
      : coordinator(std::move(its)), mine(std::move(own)), name(std::move(its_name)) {}

  /// Returns when the loop must end (true) or `duration` has passed.
  bool pause(Seconds duration) const {
    constexpr Seconds kSlice{0.02};  // two coordinators may say stop, and one can be waited for
    for (Seconds left = duration; left.count() > 0; left -= kSlice) {
      if (mine.should_stop() || coordinator.wait_for_stop(std::min(left, kSlice))) return true;
    }
    return ends();
  }
  bool ends() const { return mine.should_stop() || coordinator.should_stop(); }

  Coordinator coordinator;
  Coordinator mine;  ///< of this thread alone: its object is being destroyed
  std::string name;
  Coordinator::Registration registration;
  std::atomic<bool> alive = true;
};

LooperThread::LooperThread(Coordinator coordinator, Executor& executor, std::string name,
                           std::optional<Seconds> interval, std::function<void()> target)
    : loop_(std::make_shared<Loop>(coordinator, Coordinator(), name)), worker_(executor.start(name)) {
  loop_->registration = coordinator.register_thread(name);
  worker_->post([loop = loop_, interval, target = std::move(target)] {
    loop->coordinator.stop_on_exception(
        [&] {
          const Clock& clock = loop->coordinator.clock();
          const Seconds start = clock.now();
          while (!loop->ends()) {
            target();
            if (!interval) continue;
            const Seconds gone = clock.now() - start;
            const Seconds next = (std::floor(gone / *interval) + 1) * *interval;
            if (loop->pause(next - gone)) break;
          }
        },
        loop->name);
    loop->alive = false;
    loop->registration.ended();
  });
}

LooperThread::~LooperThread() {
  loop_->mine.request_stop();
}

bool LooperThread::alive() const {
  return loop_->alive;
}

}  // namespace lockstep
