#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lockstep/hooks/session_run_hook.hpp>

namespace lockstep::test {

/// Keeps every message.
class Messages final : public Log::Sink {
 public:
  void write(LogLevel, std::string_view message) override { lines.emplace_back(message); }
  std::vector<std::string> lines;
};

/// A session made of nothing but its step and its clock, to drive one hook by hand.
class FakeContext final : public RunContext {
 public:
  int rank() const override { return my_rank; }
  int ranks() const override { return 4; }
  const Topology& topology() const override { return where; }
  State& state() override { return model; }
  std::int64_t global_step() const override { return model.global_step(); }
  const Clock& clock() const override { return *time; }
  const Log& log() const override { return log_; }
  SummaryWriter& summary() override { return writer; }
  void agree_on(SecondOrStepTimer& timer) override {
    // Not registered: in these tests the timers read the clock themselves.
    timer.use_clock(time);
    ++timers;
  }
  void request_stop(std::string_view reason) override { asked.emplace_back(reason); }
  void request_stop_all(std::string_view reason) override { stopped.emplace_back(reason); }
  bool stop_requested() const override { return !asked.empty() || !stopped.empty(); }
  void save_now() override {}
  Feeds& feeds() override { return fed; }
  StepTrace& trace() override { return steps_trace; }
  void gather(std::string text, Deliver deliver) override { gathered.emplace_back(std::move(text), deliver); }

  /// One step of a session with a single hook: returns what its after_run threw, if anything.
  template <class Hook>
  void step(Hook& hook, const StepValues& values = {}, const Tally& tally = Tally()) {
    hook.before_run(*this);
    model.set_global_step(model.global_step() + 1);
    hook.after_run(*this, RunValues(values, tally, model.global_step()));
  }

  int my_rank = 0;
  int timers = 0;
  State model;
  Topology where{Communicator::self()};
  std::shared_ptr<FakeClock> time = std::make_shared<FakeClock>();
  SummaryWriter writer;
  std::vector<std::string> asked;
  std::vector<std::string> stopped;
  Feeds fed;
  StepTrace steps_trace;
  std::vector<std::pair<std::string, Deliver>> gathered;
  std::shared_ptr<Messages> messages = std::make_shared<Messages>();

 private:
  Log log_{messages};
};

}  // namespace lockstep::test
