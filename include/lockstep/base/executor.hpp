#pragma once

#include <functional>
#include <memory>
#include <string>

#include <lockstep/base/clock.hpp>

namespace lockstep {

/// Runs tasks one after the other, in the order they were posted.
class Worker {
 public:
  virtual ~Worker() = default;  ///< finishes what was posted, then ends

  virtual void post(std::function<void()> task) = 0;

  /// Returns when everything posted so far is done; rethrows the first exception of a task, once.
  virtual void wait() = 0;

  /// True when nothing is waiting or running. Local; does not block.
  virtual bool idle() const = 0;
};

/// Runs a task again and again until it is destroyed.
class Periodic {
 public:
  virtual ~Periodic() = default;
};

/// Seam: threads. Whatever runs beside the main thread is started here. Such tasks never call MPI.
class Executor {
 public:
  virtual ~Executor() = default;

  /// `name` shows up in debuggers and reports (at most 15 characters are kept).
  virtual std::unique_ptr<Worker> start(const std::string& name) = 0;

  /// Calls `task` every `interval` from now on; it must not throw.
  virtual std::unique_ptr<Periodic> every(const std::string& name, Seconds interval,
                                          std::function<void()> task) = 0;
};

/// Real threads, with all signals blocked so that handlers run on the main thread.
class ThreadExecutor final : public Executor {
 public:
  std::unique_ptr<Worker> start(const std::string& name) override;
  std::unique_ptr<Periodic> every(const std::string& name, Seconds interval,
                                  std::function<void()> task) override;
};

/// Runs a posted task at once, on the caller, and periodic tasks never. For simulations and tests.
class InlineExecutor final : public Executor {
 public:
  std::unique_ptr<Worker> start(const std::string& name) override;
  std::unique_ptr<Periodic> every(const std::string& name, Seconds interval,
                                  std::function<void()> task) override;
};

}  // namespace lockstep
