// How fast is the canonical sum between many simulated ranks, beside each of SMPI's algorithms for
// MPI_Allreduce?
//
//   simulated_allreduce --platform benchmarks/platforms/fat_tree.xml --ranks 1024 [--per_node N] [--algorithm
//   NAME...]
//       [BYTES...]
//
// Simulated time: from when the last rank begins to when the last has the sum. Additions and memory cost
// nothing on either side. Exit status 1 where ours takes more than 1.3 times as long as the best of them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include <mpi.h>
#include <simgrid/s4u/Engine.hpp>

#include <lockstep/reduce/reducer.hpp>

#include "ranks.hpp"

// SMPI's choice of an algorithm, which it has no header for.
namespace simgrid::smpi::colls {
void set_allreduce(const std::string& name);
}

namespace {

using namespace lockstep;

// Those that know of nodes, or broadcast in segments, fail in SMPI 3.32. lr (a ring) and rab2 (everybody to
// everybody) take long to simulate: name them.
std::vector<std::string> algorithms = {"rdb", "rab_rdb"};
constexpr int kRounds = 2;
constexpr double kMost = 1.3;

/// Of one call that all ranks make at once.
class Stopwatch {
 public:
  explicit Stopwatch(int ranks) : ranks_(ranks) {}

  /// Collective.
  template <class Work>
  void time(const Communicator& world, Work work) {
    world.barrier("all ranks to begin");
    PMPI_Barrier(MPI_COMM_WORLD);
    begin_ = std::max(begin_, now());
    work();
    end_ = std::max(end_, now());
    if (++came_ < ranks_) return;
    came_ = 0;
    samples_.push_back(end_ - begin_);
    begin_ = end_ = 0;
  }

  double best() const { return *std::ranges::min_element(samples_); }

 private:
  static double now() { return simgrid::s4u::Engine::get_clock(); }

  int ranks_;
  int came_ = 0;
  double begin_ = 0;
  double end_ = 0;
  std::vector<double> samples_;
};

struct Line {
  std::size_t bytes = 0;
  std::string reducer;
  Stopwatch canonical;
  std::vector<Stopwatch> theirs;
};

void measure(const Topology& topology, Line& line) {
  const std::size_t count = line.bytes / sizeof(float);
  const std::size_t elements = (count + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  const Communicator& world = topology.world;
  {
    const auto reducer = make_reducer(ReductionKind::canonical, topology, elements, world.size());
    if (world.is_chief()) line.reducer = reducer->describe();
    for (int round = 0; round < kRounds; ++round) {
      reducer->begin_micro_batch();
      reducer->end_micro_batch();
      line.canonical.time(world, [&] {
        reducer->reduce(Tally(world.rank()));
        reducer->complete_sum();
      });
    }
  }
  // Ranks of this process: what they send is all the same.
  std::vector<float> from(count);
  std::vector<float> into(count);
  for (std::size_t i = 0; i < algorithms.size(); ++i) {
    PMPI_Barrier(MPI_COMM_WORLD);
    simgrid::smpi::colls::set_allreduce(algorithms[i]);
    for (int round = 0; round < kRounds; ++round) {
      line.theirs[i].time(world, [&] {
        PMPI_Allreduce(from.data(), into.data(), static_cast<int>(count), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
      });
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const simgrid::s4u::Engine engine(&argc, argv);
  simulated::Ranks ranks;
  std::vector<std::size_t> sizes;
  for (int i = 1; i < argc;) {
    if (const int understood = ranks.parse_word(argc - i, argv + i); understood > 0) {
      i += understood;
    } else if (std::string(argv[i]) == "--algorithm" && i + 1 < argc) {
      algorithms.emplace_back(argv[i + 1]);
      i += 2;
    } else {
      sizes.push_back(std::max<std::size_t>(4, std::strtoull(argv[i++], nullptr, 10)));
    }
  }
  if (sizes.empty()) sizes = {4096, 65536, std::size_t{1} << 20, std::size_t{4} << 20};
  std::vector<Line> lines;
  for (const std::size_t bytes : sizes) {
    lines.push_back(
        {bytes, {}, Stopwatch(ranks.ranks), std::vector(algorithms.size(), Stopwatch(ranks.ranks))});
  }
  ranks.run([&](int, const Communicator& world) {
    const Topology topology(world);
    for (Line& line : lines) measure(topology, line);
  });
  bool good = true;
  std::printf("%d ranks, %d a node, %s\n", ranks.ranks, ranks.per_node, ranks.platform.c_str());
  for (const Line& line : lines) {
    std::size_t best = 0;
    for (std::size_t i = 0; i < algorithms.size(); ++i) {
      if (line.theirs[i].best() < line.theirs[best].best()) best = i;
    }
    const double ours = line.canonical.best();
    const double ratio = ours / line.theirs[best].best();
    good = good && ratio <= kMost;
    std::printf("%9zu bytes: ours %10.2f us, best of SMPI %10.2f us (%s), ratio %.2f; %s\n  ", line.bytes,
                ours * 1e6, line.theirs[best].best() * 1e6, algorithms[best].c_str(), ratio,
                line.reducer.c_str());
    for (std::size_t i = 0; i < algorithms.size(); ++i) {
      std::printf(" %s %.2f", algorithms[i].c_str(), line.theirs[i].best() * 1e6);
    }
    std::printf("\n");
  }
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
