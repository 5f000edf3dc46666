// A program in which one rank throws an exception of its own, in one phase of a session, or stands still at
// the end:
//
//   mpirun -n 4 throwing PHASE RANK DIRECTORY
//
// Each rank prints which of its hooks' functions were called in the end.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/hooks/checkpoint_saver.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/session/looper_thread.hpp>
#include <lockstep/session/monitored_training_session.hpp>

#include "../../apps/program.hpp"
#include "../session/failing_saver.hpp"

namespace {

using namespace lockstep;

struct Trouble {
  std::string phase;
  bool mine = false;

  void here(std::string_view now, bool due = true) const {
    if (mine && due && now == phase) throw std::runtime_error("boom in " + phase);
  }
};

class TroubledHook final : public SessionRunHook {
 public:
  explicit TroubledHook(const Trouble& trouble) : trouble_(trouble) {}
  std::string_view name() const override { return "troubled"; }
  void after_create_session(RunContext& context) override {
    const bool stands =
        trouble_.phase == "standing still at the start" || trouble_.phase == "stopped at the start";
    if (trouble_.mine && stands) std::raise(SIGSTOP);
    looper_ = std::make_unique<LooperThread>(context.coordinator(), executor_, "looper", Seconds{0.001},
                                             [this] { trouble_.here("thread"); });
  }
  void before_run(RunContext& context) override { trouble_.here("before_run", context.global_step() == 2); }
  void after_run(RunContext& context, const RunValues&) override {
    trouble_.here("after_run", context.global_step() == 3);
  }
  void end(RunContext& context) override { say(context, "end"); }
  void on_error(RunContext& context, const std::exception&) override { say(context, "on_error"); }

 private:
  static void say(const RunContext& context, const char* what) {
    std::printf("rank %d: %s is called\n", context.rank(), what);
  }
  const Trouble& trouble_;
  ThreadExecutor executor_;
  std::unique_ptr<LooperThread> looper_;
};

class TroubledListener final : public CheckpointSaverListener {
 public:
  explicit TroubledListener(const Trouble& trouble) : trouble_(trouble) {}
  void before_save(std::int64_t step) override { trouble_.here("before_save", step == 2); }
  bool after_save(std::int64_t step) override {
    trouble_.here("after_save", step == 2);
    return false;
  }

 private:
  const Trouble& trouble_;
};

ExitCode train(const Communicator& world, const Trouble& trouble, const std::string& directory) {
  State state;
  state.parameter("w", {5});
  MonitoredTrainingSessionOptions options;
  options.checkpoint_dir = directory;
  options.save_checkpoint_secs = 0;
  if (trouble.phase == "standing still at the start") options.max_wait_secs = 5;
  options.config.log = Log::standard("");
  options.config.executor =
      std::make_shared<test::FailingSaver>([&] { trouble.here("save", state.global_step() == 2); });
  options.scaffold.init_fn = [&](State&) {
    if (trouble.mine && trouble.phase == "stopped in init_fn") std::raise(SIGSTOP);
    trouble.here("init_fn");
  };
  const bool short_run =
      trouble.phase == "none" || trouble.phase == "after the session" || trouble.phase == "standing still";
  options.hooks = {std::make_shared<TroubledHook>(trouble),
                   std::make_shared<CheckpointSaverHook>(CheckpointSaverHook::Options{
                       .save_steps = 2, .listeners = {std::make_shared<TroubledListener>(trouble)}}),
                   std::make_shared<StopAtStepHook>(std::nullopt, short_run ? 4 : 1'000'000'000)};
  MonitoredTrainingSession session(world, state, options);
  const MonitoredTrainingSession::Step step = [&](StepContext& context) {
    trouble.here("step", context.number() == 2);
    trouble.here("slow chief", context.number() == 2);
    const std::vector<float> gradients(context.state().parameter_elements());
    context.reduce(gradients);
    trouble.here("late step", context.number() == 2);
    return StepValues{{"loss", 0.5}};
  };
  while (!session.should_stop()) {
    trouble.here("between steps", session.global_step() == 2);
    session.run(step);
  }
  session.close();
  trouble.here("after the session");
  return ExitCode::done;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 64;
  const lockstep::Environment environment(&argc, &argv);
  const Trouble trouble{argv[1], std::atoi(argv[2]) == environment.world().rank()};
  const bool stands = trouble.phase == "standing still";
  // With the long patience that the start of a session has, what ends it is who is stopped.
  const bool stopped = trouble.phase == "stopped at the start" || trouble.phase == "stopped in init_fn";
  const lockstep::Seconds limit{stands ? 5.0 : stopped ? 0.5 : 0.0};
  return lockstep::run_program(environment, nullptr, "", limit, [&](const lockstep::Communicator& world) {
    try {
      const lockstep::ExitCode code = train(world, trouble, argv[3]);
      if (trouble.mine && trouble.phase == "standing still") std::raise(SIGSTOP);
      return code;
    } catch (const std::exception&) {
      // The chief has something to bring to an end, longer than ranks wait for those that know of nothing: so
      // it sleeps, since the others must be seen to wait.
      if (trouble.phase == "slow chief" && world.is_chief())
        lockstep::SystemClock().sleep(lockstep::Seconds{4});
      throw;
    }
  });
}
