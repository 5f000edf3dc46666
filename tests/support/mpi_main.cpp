// The main program of tests that run under mpirun: output is buffered per rank, rank 0 and failing ranks
// print, and every rank returns the maximum over ranks.

#define DOCTEST_CONFIG_IMPLEMENT
#include <algorithm>
#include <cstdio>
#include <sstream>
#include <string>

#include <doctest/doctest.h>

#include <lockstep/mpi/environment.hpp>

int main(int argc, char** argv) {
  const lockstep::Environment environment(&argc, &argv);
  const auto world = environment.world();
  std::ostringstream output;
  doctest::Context context(argc, argv);
  context.setOption("no-intro", true);
  context.setCout(&output);
  const int mine = context.run();
  int worst = 0;
  for (const int result : world.all_gather(mine)) worst = std::max(worst, result);
  if (world.rank() == 0 || mine != 0) {
    const std::string text = "[rank " + std::to_string(world.rank()) + " of " + std::to_string(world.size()) +
                             "]\n" + output.str();
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  }
  return worst;
}
