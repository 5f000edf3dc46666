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
#include <vector>

#include <simgrid/s4u/Engine.hpp>

#include <lockstep/base/peak_memory.hpp>

#include "job.hpp"
#include "meter.hpp"
#include "ranks.hpp"

namespace {

using namespace lockstep;

Seconds processor_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return Seconds{static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9};
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
  const simgrid::s4u::Engine engine(&argc, argv);
  simulated::Ranks ranks;
  simulated::JobOptions options;
  for (int i = 1; i < argc;) {
    int understood = ranks.parse_word(argc - i, argv + i);
    if (understood == 0) understood = simulated::parse_word(argc - i, argv + i, options);
    if (understood == 0) {
      std::fprintf(stderr, "simulated_job: what is '%s'?\n", argv[i]);
      return 64;
    }
    i += understood;
  }
  std::vector<simulated::JobResult> results(static_cast<std::size_t>(ranks.ranks));
  const auto clock = simulated::simulated_clock();
  const simulated::JobSeams seams{.clock = clock,
                                  .executor = std::make_shared<InlineExecutor>(),
                                  .charge = simulated::compute_for,
                                  .processor_time = processor_time,
                                  .passed = [](const char* phase) { simulated::pass_phase(phase); }};
  double simulated_seconds = 0;
  const Seconds start = processor_time();
  ranks.ready = [&] { simulated::start_metering(ranks.ranks); };
  ranks.run([&](int rank, const Communicator& world) {
    results[static_cast<std::size_t>(rank)] = simulated::run_job(world, options, seams);
    simulated_seconds = std::max(simulated_seconds, clock->now().count());
  });
  simulated::stop_metering();

  bool same = true;
  for (const auto& result : results) same = same && result.digest == results.front().digest;
  std::printf(
      "{\"ranks\": %d, \"per_node\": %d, \"digest\": \"%s\", \"same\": %s, \"step_seconds\": %.9g,\n"
      "  \"simulated_seconds\": %.6g, \"processor_seconds\": %.3g, \"peak_memory\": %lld, \"reducer\": "
      "\"%s\"",
      ranks.ranks, ranks.per_node, results.front().digest.c_str(), same ? "true" : "false",
      results.front().step_seconds, simulated_seconds, (processor_time() - start).count(),
      static_cast<long long>(peak_memory()), results.front().reducer.c_str());
  const simulated::JobParts& parts = results.front().parts;
  std::printf(",\n  \"parts\": {\"begin\": %.9g, \"compute\": %.9g, \"reduce\": %.9g, \"finish\": %.9g}",
              parts.begin, parts.compute, parts.reduce, parts.finish);
  std::printf(", \"wait_chief\": %.9g, \"wait_last\": %.9g", parts.wait, parts.wait_last);
  print_phases();
  std::printf("}\n");
  return same ? EXIT_SUCCESS : EXIT_FAILURE;
}
