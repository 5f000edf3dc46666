#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <pthread.h>
#include <signal.h>

#include <lockstep/base/executor.hpp>
#include <lockstep/base/floating_point.hpp>

namespace lockstep {
namespace {

/// Blocks all signals of the calling thread while it lives.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

/// Starts a thread that receives no signals. Signals are blocked around the creation because a new thread
/// inherits the mask; blocking them inside would leave a gap. The creation may throw.
std::thread start_thread(const std::string& name, std::function<void()> body) {
  const SignalsBlocked blocked;
  std::thread thread([body = std::move(body)] {
    use_standard_floating_point();
    body();
  });
  pthread_setname_np(thread.native_handle(), name.substr(0, 15).c_str());
  return thread;
}

class ThreadWorker final : public Worker {
 public:
  explicit ThreadWorker(const std::string& name) {
    tasks_.reserve(kRoom);
    thread_ = start_thread(name, [this] { loop(); });
  }

  ~ThreadWorker() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  void post(std::function<void()> task) override {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
      ++pending_;
    }
    wake_.notify_one();
  }

  void wait() override {
    if (pending_.load(std::memory_order_acquire) != 0) {
      std::unique_lock lock(mutex_);
      done_.wait(lock, [this] { return pending_.load() == 0; });
    }
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  bool idle() const override { return pending_.load(std::memory_order_acquire) == 0; }

 private:
  static constexpr std::size_t kRoom = 64;  // tasks that may wait before the buffers have to grow

  void loop() {
    // Two buffers that trade places, so that a steady stream of tasks allocates nothing.
    std::vector<std::function<void()>> taken;
    taken.reserve(kRoom);
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      taken.swap(tasks_);
      for (std::function<void()>& task : taken) {
        lock.unlock();
        std::exception_ptr failure;
        try {
          task();
        } catch (...) {
          failure = std::current_exception();
        }
        task = nullptr;
        lock.lock();
        if (failure && !failure_) failure_ = failure;
        --pending_;
        if (pending_.load() == 0) done_.notify_all();
      }
      taken.clear();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::vector<std::function<void()>> tasks_;
  std::atomic<int> pending_{0};
  bool ending_ = false;
  std::exception_ptr failure_;
  std::thread thread_;  // last: it uses all of the above
};

class ThreadPeriodic final : public Periodic {
 public:
  ThreadPeriodic(const std::string& name, Seconds interval, std::function<void()> task)
      : interval_(interval), task_(std::move(task)), thread_(start_thread(name, [this] { loop(); })) {}

  ~ThreadPeriodic() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

 private:
  void loop() {
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, interval_, [this] { return ending_; })) {
      lock.unlock();
      task_();
      lock.lock();
    }
  }

  Seconds interval_;
  std::function<void()> task_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ending_ = false;
  std::thread thread_;
};

class InlineWorker final : public Worker {
 public:
  void post(std::function<void()> task) override {
    try {
      task();
    } catch (...) {
      if (!failure_) failure_ = std::current_exception();
    }
  }

  void wait() override {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  bool idle() const override { return true; }

 private:
  std::exception_ptr failure_;
};

class NeverPeriodic final : public Periodic {};

}  // namespace

std::unique_ptr<Worker> ThreadExecutor::start(const std::string& name) {
  return std::make_unique<ThreadWorker>(name);
}

std::unique_ptr<Periodic> ThreadExecutor::every(const std::string& name, Seconds interval,
                                                std::function<void()> task) {
  return std::make_unique<ThreadPeriodic>(name, interval, std::move(task));
}

std::unique_ptr<Worker> InlineExecutor::start(const std::string&) {
  return std::make_unique<InlineWorker>();
}

std::unique_ptr<Periodic> InlineExecutor::every(const std::string&, Seconds, std::function<void()>) {
  return std::make_unique<NeverPeriodic>();
}

}  // namespace lockstep
