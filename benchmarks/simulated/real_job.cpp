// The job of simulated_job under a real MPI: what its bits and times are compared with.
//
//   mpirun -n 2 real_job [words of job.hpp]
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>

#include <lockstep/mpi/environment.hpp>

#include "job.hpp"

int main(int argc, char** argv) {
  using namespace lockstep;
  const Environment environment(&argc, &argv);
  simulated::JobOptions options;
  for (int i = 1; i < argc;) {
    const int understood = simulated::parse_word(argc - i, argv + i, options);
    if (understood == 0) {
      std::fprintf(stderr, "real_job: what is '%s'?\n", argv[i]);
      return 64;
    }
    i += understood;
  }
  const Communicator world = environment.world();
  simulated::JobSeams seams{.clock = std::make_shared<SystemClock>(),
                            .executor = std::make_shared<InlineExecutor>(),
                            .charge = [](Seconds) {},
                            .processor_time = [] { return Seconds{0}; },
                            .passed = [](const char*) {}};
  const simulated::JobResult result = simulated::run_job(world, options, seams);
  if (world.is_chief()) {
    std::printf("{\"ranks\": %d, \"digest\": \"%s\", \"step_seconds\": %.9g, \"reducer\": \"%s\"}\n",
                world.size(), result.digest.c_str(), result.step_seconds, result.reducer.c_str());
  }
  return EXIT_SUCCESS;
}
