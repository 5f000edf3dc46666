#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <lockstep/base/executor.hpp>
#include <lockstep/session/coordinator.hpp>

namespace lockstep {

/// A thread that calls a function again and again until its coordinator asks to stop
/// (tf.train.LooperThread). What the function throws is reported to the coordinator and ends the thread.
/// Needs an executor with threads. The function must not communicate with other ranks.
class LooperThread {
 public:
  /// Starts at once: calls `target` every `interval` on fixed boundaries (one that takes longer leaves some
  /// out), or back to back without one.
  LooperThread(Coordinator coordinator, Executor& executor, std::string name, std::optional<Seconds> interval,
               std::function<void()> target);

  /// Ends the loop and waits for the call that is running: what `target` uses must outlive it.
  ~LooperThread();
  LooperThread(const LooperThread&) = delete;
  LooperThread& operator=(const LooperThread&) = delete;

  bool alive() const;  ///< Local; any thread.

 private:
  struct Loop;
  std::shared_ptr<Loop> loop_;
  std::unique_ptr<Worker> worker_;
};

}  // namespace lockstep
