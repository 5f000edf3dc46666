#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include <lockstep/base/executor.hpp>

namespace lockstep::test {

/// Runs a checkpoint saver's work inline, or in threads, and `trouble` whenever a save is handed over, on the
/// thread of the session: the place for one that throws.
class FailingSaver final : public Executor {
 public:
  explicit FailingSaver(std::function<void()> trouble,
                        std::shared_ptr<Executor> real = std::make_shared<ThreadExecutor>())
      : trouble_(std::move(trouble)), real_(std::move(real)) {}

  std::unique_ptr<Worker> start(const std::string& name) override {
    auto worker = real_->start(name);
    if (name != "saver") return worker;
    return std::make_unique<FailingWorker>(std::move(worker), trouble_);
  }
  std::unique_ptr<Periodic> every(const std::string& name, Seconds interval,
                                  std::function<void()> task) override {
    return real_->every(name, interval, std::move(task));
  }

 private:
  class FailingWorker final : public Worker {
   public:
    FailingWorker(std::unique_ptr<Worker> real, std::function<void()> trouble)
        : real_(std::move(real)), trouble_(std::move(trouble)) {}
    void post(std::function<void()> task) override {
      trouble_();
      real_->post(std::move(task));
    }
    void wait() override { real_->wait(); }
    bool idle() const override { return real_->idle(); }

   private:
    std::unique_ptr<Worker> real_;
    std::function<void()> trouble_;
  };

  std::function<void()> trouble_;
  std::shared_ptr<Executor> real_;
};

}  // namespace lockstep::test
