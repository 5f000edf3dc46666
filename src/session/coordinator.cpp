#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/session/coordinator.hpp>
#include <lockstep/session/step_context.hpp>

namespace lockstep {

struct Coordinator::Shared {
  Shared(std::shared_ptr<Clock> of_session, IsClean clean)
      : its_clock(std::move(of_session)), is_clean(std::move(clean)) {}

  std::shared_ptr<Clock> its_clock;
  IsClean is_clean;
  std::atomic<bool> stop = false;  // also read without the mutex: every step asks
  mutable std::mutex mutex;        // guards what follows
  mutable std::condition_variable stopping;
  std::string reason;
  std::exception_ptr failure;
  std::string failed_thread;
  bool joined = false;
  std::vector<std::weak_ptr<const std::string>> threads;

  std::vector<std::string> live() const {
    const std::lock_guard lock(mutex);
    std::vector<std::string> names;
    for (const auto& thread : threads) {
      if (const auto name = thread.lock()) names.push_back(*name);
    }
    return names;
  }
};

Coordinator::Coordinator(std::shared_ptr<Clock> clock)
    : Coordinator(std::move(clock), [](const std::exception& error) {
        return dynamic_cast<const EndOfInput*>(&error) != nullptr;
      }) {}

Coordinator::Coordinator(std::shared_ptr<Clock> clock, IsClean is_clean)
    : shared_(std::make_shared<Shared>(std::move(clock), std::move(is_clean))) {}

void Coordinator::request_stop(std::string_view reason) {
  {
    const std::lock_guard lock(shared_->mutex);
    if (!shared_->stop) shared_->reason = reason;
    shared_->stop = true;
  }
  shared_->stopping.notify_all();
}

void Coordinator::request_stop(const std::exception_ptr& failure, std::string_view thread) {
  bool clean = false;
  std::string text;
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    clean = shared_->is_clean(error);
    text = error.what();
  } catch (...) {
    // Of an unknown type: a failure.
  }
  {
    const std::lock_guard lock(shared_->mutex);
    if (shared_->joined && !clean) std::rethrow_exception(failure);
    if (!clean && !shared_->failure) {
      shared_->failure = failure;
      shared_->failed_thread = thread;
    }
    if (!shared_->stop) shared_->reason = text;
    shared_->stop = true;
  }
  shared_->stopping.notify_all();
}

bool Coordinator::should_stop() const noexcept {
  return shared_->stop.load(std::memory_order_acquire);
}

bool Coordinator::wait_for_stop(std::optional<Seconds> limit) const {
  std::unique_lock lock(shared_->mutex);
  const auto stopped = [&] { return shared_->stop.load(); };
  if (limit) return shared_->stopping.wait_for(lock, *limit, stopped);
  shared_->stopping.wait(lock, stopped);
  return true;
}

void Coordinator::clear_stop() {
  const std::lock_guard lock(shared_->mutex);
  shared_->stop = false;
  shared_->joined = false;
  shared_->failure = nullptr;
  shared_->failed_thread.clear();
  shared_->reason.clear();
}

void Coordinator::stop_on_exception(const std::function<void()>& work, std::string_view thread) {
  try {
    work();
  } catch (...) {
    request_stop(std::current_exception(), thread);
  }
}

void Coordinator::raise_requested_exception() const {
  if (const auto error = failure()) std::rethrow_exception(error);
}

std::exception_ptr Coordinator::failure() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->failure;
}

std::string Coordinator::failed_thread() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->failed_thread;
}

std::string Coordinator::reason() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->reason;
}

Coordinator::Registration Coordinator::register_thread(const std::string& name) {
  Registration registration;
  registration.alive_ = std::make_shared<const std::string>(name);
  const std::lock_guard lock(shared_->mutex);
  std::erase_if(shared_->threads, [](const auto& thread) { return thread.expired(); });
  shared_->threads.push_back(registration.alive_);
  return registration;
}

std::vector<std::string> Coordinator::live_threads() const {
  return shared_->live();
}

void Coordinator::join(Seconds grace, bool ignore_live_threads) {
  constexpr Seconds kShortest{1e-3};
  constexpr Seconds kLongest{0.05};
  Clock& clock = *shared_->its_clock;
  std::vector<std::string> live = shared_->live();
  for (Seconds pause = kShortest; !live.empty() && !should_stop(); pause = std::min(2 * pause, kLongest)) {
    clock.sleep(pause);
    live = shared_->live();
  }
  const Seconds end = clock.now() + grace;
  for (Seconds pause = kShortest; !live.empty() && clock.now() < end; pause = std::min(2 * pause, kLongest)) {
    clock.sleep(std::min(pause, end - clock.now()));
    live = shared_->live();
  }
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->joined = true;
  }
  raise_requested_exception();
  if (!live.empty() && !ignore_live_threads) {
    throw TrainingError(
        fmt::format("{} did not end within {} s of being asked to ({}); let them look at should_stop() more "
                    "often, or give them a longer stop_grace_period_secs",
                    live.size() == 1 ? "a thread" : "threads", grace.count(), fmt::join(live, ", ")));
  }
}

bool Coordinator::joined() const noexcept {
  const std::lock_guard lock(shared_->mutex);
  return shared_->joined;
}

Clock& Coordinator::clock() const noexcept {
  return *shared_->its_clock;
}

}  // namespace lockstep
