// Ranks of a fault-tolerant MPI that are killed or stand still, one after the other, down to one: at each
// loss one of those that are left believes that all is well. Prints what is wrong, and exits with 1.

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

#include <unistd.h>

#include <lockstep/base/error.hpp>
#include <lockstep/mpi/environment.hpp>

namespace {

using namespace lockstep;

int wrong = 0;

void check(bool holds, const char* what, int round) {
  if (holds) return;
  std::fprintf(stderr, "round %d: not so: %s\n", round, what);
  ++wrong;
}

/// The ranks of `world` can do what ranks do.
bool works(const Communicator& world) {
  const auto ranks = world.all_gather(world.rank());
  const auto memory = world.share(sizeof(int));
  *reinterpret_cast<int*>(memory->region(world.rank()).data()) = world.rank();
  world.barrier("all to have written");
  for (int rank = 0; rank < world.size(); ++rank) {
    if (ranks[static_cast<std::size_t>(rank)] != rank) return false;
    if (*reinterpret_cast<const int*>(memory->region(rank).data()) != rank) return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const Environment environment(&argc, &argv);
  check(Environment::survives_losses(), "this MPI survives losses", 0);
  std::optional<Communicator> world = environment.world();
  check(works(*world), "the first world works", 0);
  for (int round = 0; wrong == 0 && world->size() > 1; ++round) {
    const int before = world->size();
    const int victim = round % before;
    const bool stops = round % 2 != 0;
    int told = 0;
    const auto tell = [&](const std::string&) { ++told; };
    // All others are past the last round.
    try {
      world->barrier("the round");
    } catch (const DeadlineExceeded&) {
      // Others are further and have said that they are not well.
    }
    if (world->rank() == victim) ::kill(::getpid(), stops ? SIGSTOP : SIGKILL);
    const bool well = before > 2 && world->rank() == (victim + 1) % before;
    if (!well && !stops) {
      bool thrown = false;
      try {
        world->barrier("a rank that is dead");
      } catch (const DeadlineExceeded&) {
        thrown = true;
      }
      check(thrown, "a wait for a dead rank ends", round);
      check(environment.has_lost(), "the loss is known", round);
    }
    const bool all_well = environment.agree_to_end(well, Seconds{stops ? 1.0 : 30.0}, tell);
    check(!all_well, "nobody takes it that all are well", round);
    world = environment.survivors(Seconds{30}, tell);
    check(world->size() == before - 1, "all are left but one", round);
    check(works(*world), "the new world works", round);
    int kills = 0;
    for (const int count : world->all_gather(told)) kills += count;
    check(kills == (stops ? 1 : 0), "who stands still is killed by one rank", round);
  }
  check(environment.agree_to_end(true, Seconds{30}, [](const std::string&) {}), "all is well at the end", 99);
  return wrong == 0 ? 0 : 1;
}
