// A job of as many ranks as you like, under SimGrid's SMPI: everything is the project's own but gradients,
// time and network. Prints what it measured as JSON.
//
//   simulated_job --platform benchmarks/platforms/fat_tree.xml --ranks 256 --per_node 8 [words of job.hpp]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <simgrid/s4u.hpp>
#include <smpi/smpi.h>
#include <xbt/log.h>

#include <lockstep/base/log.hpp>
#include <lockstep/base/peak_memory.hpp>
#include <lockstep/mpi/environment.hpp>

#include "job.hpp"
#include "meter.hpp"

namespace {

using namespace lockstep;

class SimulatedClock final : public Clock {
 public:
  Seconds now() const override { return Seconds{simgrid::s4u::Engine::get_clock()}; }
  double wall_seconds() const override { return 1.7e9 + now().count(); }
  void sleep(Seconds duration) override { simgrid::s4u::this_actor::sleep_for(duration.count()); }
};

Seconds processor_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return Seconds{static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9};
}

/// In the order of the numbers in their names.
std::vector<simgrid::s4u::Host*> hosts_of(const simgrid::s4u::Engine& engine) {
  std::vector<simgrid::s4u::Host*> hosts = engine.get_all_hosts();
  std::ranges::sort(hosts, [](const auto* a, const auto* b) {
    const auto& left = a->get_name();
    const auto& right = b->get_name();
    return left.size() != right.size() ? left.size() < right.size() : left < right;
  });
  return hosts;
}

void print_counter(const char* name, const std::vector<simulated::Metered>& before,
                   const std::vector<simulated::Metered>& after, std::int64_t simulated::Metered::*counter) {
  std::int64_t most = 0;
  for (std::size_t rank = 0; rank < after.size(); ++rank) {
    most = std::max(most, after[rank].*counter - before[rank].*counter);
  }
  std::printf(", \"%s\": [%lld, %lld]", name, static_cast<long long>(after[0].*counter - before[0].*counter),
              static_cast<long long>(most));
}

/// Of each phase: [of the chief, the most of any rank].
void print_phases() {
  std::vector<simulated::Metered> before;
  for (const auto& [phase, ranks] : simulated::metered()) {
    if (before.empty()) before.resize(ranks.size());
    std::printf(",\n  \"%s\": {\"phase\": 1", phase.c_str());
    using simulated::Metered;
    print_counter("sends", before, ranks, &Metered::sends);
    print_counter("receives", before, ranks, &Metered::receives);
    print_counter("sent_bytes", before, ranks, &Metered::sent_bytes);
    print_counter("collectives", before, ranks, &Metered::collectives);
    print_counter("gathered_bytes", before, ranks, &Metered::gathered_bytes);
    const std::vector<Metered> nothing(ranks.size());
    print_counter("live_bytes", nothing, ranks, &Metered::live_bytes);
    print_counter("peak_bytes", nothing, ranks, &Metered::peak_bytes);
    std::printf("}");
    before = ranks;
  }
}

}  // namespace

int main(int argc, char** argv) {
  simgrid::s4u::Engine engine(&argc, argv);
  std::string platform;
  int ranks = 4;
  int per_node = 1;
  simulated::JobOptions options;
  for (int i = 1; i < argc;) {
    const std::string_view word = argv[i];
    int understood = i + 1 < argc ? 2 : 0;
    if (word == "--platform" && understood > 0) {
      platform = argv[i + 1];
    } else if (word == "--ranks" && understood > 0) {
      ranks = std::atoi(argv[i + 1]);
    } else if (word == "--per_node" && understood > 0) {
      per_node = std::atoi(argv[i + 1]);
    } else {
      understood = simulated::parse_word(argc - i, argv + i, options);
    }
    if (understood == 0) {
      std::fprintf(stderr, "simulated_job: what is '%s'?\n", argv[i]);
      return 64;
    }
    i += understood;
  }
  // A wait is ours (pass_simulated_time); computing is charged by the job.
  using simgrid::s4u::Engine;
  for (const char* quiet :
       {"xbt_cfg.thresh:warning", "smpi_config.thresh:warning", "smpi_coll.thresh:warning"})
    xbt_log_control_set(quiet);
  smpi_init_options();
  Engine::set_config("smpi/test:0");
  Engine::set_config("smpi/iprobe:0");
  Engine::set_config("smpi/wtime:0");
  Engine::set_config("smpi/coll-selector", std::string("ompi"));  // the default sends a message to each rank
  Engine::set_config("smpi/simulate-computation:no");
  Engine::set_config("surf/precision:1e-9");
  Engine::set_config("contexts/stack-size:512");
  SMPI_init();
  engine.load_platform(platform);
  const auto hosts = hosts_of(engine);
  if (static_cast<std::size_t>((ranks + per_node - 1) / per_node) > hosts.size()) {
    std::fprintf(stderr, "simulated_job: the platform has %zu hosts\n", hosts.size());
    return 64;
  }
  SMPI_app_instance_register("job", nullptr, ranks);

  std::vector<simulated::JobResult> results(static_cast<std::size_t>(ranks));
  double simulated_seconds = 0;
  const auto clock = std::make_shared<SimulatedClock>();
  const simulated::JobSeams seams{.clock = clock,
                                  .executor = std::make_shared<InlineExecutor>(),
                                  .charge =
                                      [](Seconds duration) {
                                        if (duration.count() > 0)
                                          simgrid::s4u::this_actor::sleep_for(duration.count());
                                      },
                                  .processor_time = processor_time,
                                  .passed = [](const char* phase) { simulated::pass_phase(phase); }};
  const auto body = [&](int rank) {
    const Environment environment(nullptr, nullptr);
    WaitPolicy policy;
    policy.clock = clock;
    const Communicator world = environment.world(policy);
    results[static_cast<std::size_t>(rank)] = simulated::run_job(world, options, seams);
    simulated_seconds = std::max(simulated_seconds, clock->now().count());
  };
  for (int rank = 0; rank < ranks; ++rank) {
    const auto actor = simgrid::s4u::Actor::create("rank" + std::to_string(rank),
                                                   hosts[static_cast<std::size_t>(rank / per_node)],
                                                   [&body, rank] { body(rank); });
    actor->set_property("instance_id", "job");
    actor->set_property("rank", std::to_string(rank));
  }
  simulated::start_metering(ranks);
  const Seconds start = processor_time();
  engine.run();
  simulated::stop_metering();
  SMPI_finalize();

  bool same = true;
  for (const auto& result : results) same = same && result.digest == results.front().digest;
  std::printf(
      "{\"ranks\": %d, \"per_node\": %d, \"digest\": \"%s\", \"same\": %s, \"step_seconds\": %.9g,\n"
      "  \"simulated_seconds\": %.6g, \"processor_seconds\": %.3g, \"peak_memory\": %lld, \"reducer\": "
      "\"%s\"",
      ranks, per_node, results.front().digest.c_str(), same ? "true" : "false", results.front().step_seconds,
      simulated_seconds, (processor_time() - start).count(), static_cast<long long>(peak_memory()),
      results.front().reducer.c_str());
  print_phases();
  std::printf("}\n");
  return same ? EXIT_SUCCESS : EXIT_FAILURE;
}
