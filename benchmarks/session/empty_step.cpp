// What does the session add to a step? A step that does nothing, with no hooks and with the default ones.
//
//   session_empty_step [STEPS]             one rank
//   mpirun -n 2 session_empty_step [STEPS]
//
// The loops are run in turns; best and median of their nanoseconds per step.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <lockstep/hooks/nan_tensor.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/mpi/environment.hpp>
#include <lockstep/reduce/reducer.hpp>
#include <lockstep/reduce/topology.hpp>
#include <lockstep/session/monitored_training_session.hpp>

namespace {

using namespace lockstep;

constexpr int kRounds = 7;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Nanoseconds a step of the loop alone: a call through std::function that returns the values.
double time_bare_loop(std::int64_t steps) {
  double loss = 0.5;
  const std::function<StepValues()> step = [&] { return StepValues{{"loss", loss}}; };
  const double start = now();
  for (std::int64_t i = 0; i < steps; ++i) {
    const StepValues values = step();
    asm volatile("" : : "r"(&values) : "memory");
  }
  return (now() - start) / static_cast<double>(steps) * 1e9;
}

/// What any loop pays whose ranks agree on something in every step: the exchange of ballots without a
/// session.
double time_exchange(const Communicator& world, std::int64_t steps) {
  const Topology topology(world);
  const auto reducer = make_reducer(ReductionKind::canonical, topology, 0, world.size());
  reducer->exchange(Tally(world.rank()));
  const double start = now();
  for (std::int64_t i = 0; i < steps; ++i) reducer->exchange(Tally(world.rank()));
  return (now() - start) / static_cast<double>(steps) * 1e9;
}

/// The same loop in a session. The first steps are not counted: files are opened there.
double time_session(const Communicator& world, std::int64_t steps, MonitoredTrainingSessionOptions options) {
  constexpr std::int64_t kWarm = 1000;
  State state;
  std::vector<float> value(1);
  state.attach("value", value, {1});
  options.hooks.push_back(std::make_shared<StopAtStepHook>(std::nullopt, kWarm + steps));
  MonitoredTrainingSession session(world, state, std::move(options));
  const MonitoredTrainingSession::Step step = [](StepContext&) { return StepValues{{"loss", 0.5}}; };
  while (session.global_step() < kWarm) session.run(step);
  const double start = now();
  while (!session.should_stop()) session.run(step);
  const double seconds = now() - start;
  session.close();
  return seconds / static_cast<double>(steps) * 1e9;
}

/// Everything that a session has unless told otherwise: saver, step counter and summaries; and the NaN hook.
MonitoredTrainingSessionOptions default_hooks(const std::filesystem::path& directory) {
  MonitoredTrainingSessionOptions options;
  options.checkpoint_dir = directory;
  options.hooks = {std::make_shared<NanTensorHook>()};
  return options;
}

/// Default hooks whose intervals never come, so that only looking at them costs.
MonitoredTrainingSessionOptions idle_hooks(const std::filesystem::path& directory) {
  MonitoredTrainingSessionOptions options = default_hooks(directory);
  options.save_summaries_steps = std::int64_t{1} << 40;
  options.log_step_count_steps = std::int64_t{1} << 40;
  return options;
}

void report(const std::string& what, std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  std::printf("%-44s best %8.1f ns, median %8.1f ns a step\n", what.c_str(), samples.front(),
              samples[samples.size() / 2]);
}

}  // namespace

int main(int argc, char** argv) {
  const Environment environment(&argc, &argv);
  const Communicator world = environment.world();
  const std::int64_t steps = argc > 1 ? std::atoll(argv[1]) : 200'000;
  const std::filesystem::path directory = std::filesystem::temp_directory_path() / "lockstep_empty_step";
  std::vector<double> bare;
  std::vector<double> exchange;
  std::vector<double> none;
  std::vector<double> idle;
  std::vector<double> all;
  const auto with_directory = [&](const auto& make) {
    on_chief(world, "the chief to clear its directory", [&] { std::filesystem::remove_all(directory); });
    return time_session(world, steps, make(directory));
  };
  for (int round = 0; round < kRounds; ++round) {
    bare.push_back(time_bare_loop(steps));
    exchange.push_back(time_exchange(world, steps));
    none.push_back(time_session(world, steps, {}));
    idle.push_back(with_directory(idle_hooks));
    all.push_back(with_directory(default_hooks));
  }
  on_chief(world, "the chief to clear its directory", [&] { std::filesystem::remove_all(directory); });
  if (!world.is_chief()) return 0;
  std::printf("%d rank(s), %lld steps, %d rounds\n", world.size(), static_cast<long long>(steps), kRounds);
  report("the loop alone", bare);
  report("the exchange of ballots alone", exchange);
  report("session without hooks", none);
  report("default hooks, none due", idle);
  report("default hooks, summaries every 100 steps", all);
}
