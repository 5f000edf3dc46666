// What an allocation can do, in a few seconds: cores, memory, messages, files, and which nodes stand out.
// `lockstep-scaling probe` launches it.
#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <limits>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include <boost/program_options.hpp>
#include <fmt/format.h>

#include <lockstep/base/files.hpp>
#include <lockstep/base/floating_point.hpp>
#include <lockstep/nn/matrix_peak.hpp>
#include <lockstep/reduce/topology.hpp>
#include <lockstep/scaling/probe.hpp>

#include "program.hpp"
#include "setup.hpp"
#include "slurm.hpp"
#include "usage.hpp"

namespace lockstep {
namespace {

namespace po = boost::program_options;

constexpr int kTag = 201;

struct ProbeOptions {
  std::string report;
  std::string directory;
};

std::pair<ProbeOptions, std::string> parse(int argc, const char* const* argv) {
  ProbeOptions o;
  po::options_description all("Options");
  all.add_options()("report", po::value(&o.report), "write the figures of all ranks here as JSON")(
      "directory", po::value(&o.directory), "whose file system is measured, too: by one rank of each node")(
      "help", "this text")("version", "name and version");
  const auto values = parse_options(argc, argv, all);
  if (values.count("version") != 0) return {o, version_text() + "\n"};
  if (values.count("help") == 0) return {o, ""};
  std::ostringstream text;
  text << "mpirun -n RANKS lockstep-probe [--directory DIR] [--report FILE]\n\nMeasures what the ranks of an "
          "allocation can do; takes a few seconds.\n\n"
       << all;
  return {o, text.str()};
}

/// Seconds of the best of some calls.
template <class Work>
double best_of(int calls, const Clock& clock, Work work) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < calls; ++i) {
    const Seconds begin = clock.now();
    work();
    best = std::min(best, (clock.now() - begin).count());
  }
  return std::max(best, 1e-9);
}

/// Bytes read and written a second.
double memory_bandwidth(const Clock& clock) {
  constexpr std::size_t kElements = std::size_t{16} << 20;  // 64 MiB, beyond the caches
  std::vector<float> from(kElements, 1.0F);
  std::vector<float> to(kElements);
  float sum = 0;
  const double seconds = best_of(6, clock, [&] {
    std::ranges::copy(from, to.begin());
    sum += to[static_cast<std::size_t>(sum) % kElements];  // so that the copy is made
  });
  return 2.0 * kElements * sizeof(float) / seconds;
}

/// Seconds of a message of so many bytes between this rank and `partner`, which calls this, too: half of
/// there and back.
double message_seconds(const Communicator& comm, int partner, std::size_t bytes, int rounds) {
  std::vector<std::byte> mine(bytes);
  std::vector<std::byte> theirs(bytes);
  const std::string name = fmt::format("rank {}", partner);
  const auto send = [&] {
    Request request = comm.send(mine, partner, kTag);
    comm.wait(request, "a message to be measured", name);
  };
  const auto receive = [&] {
    Request request = comm.receive(theirs, partner, kTag);
    comm.wait(request, "a message to be measured", name);
  };
  return best_of(rounds, *comm.policy().clock,
                 [&] {
                   if (comm.rank() < partner) {
                     send();
                     receive();
                   } else {
                     receive();
                     send();
                   }
                 }) /
         2;
}

/// Latency and bandwidth between pairs of neighbours; an odd last one has none.
void measure_messages(const Communicator& comm, double& latency, double& bandwidth) {
  constexpr std::size_t kSmall = 8;
  constexpr std::size_t kLarge = std::size_t{4} << 20;
  const int partner = comm.rank() ^ 1;
  if (partner >= comm.size()) return;
  latency = message_seconds(comm, partner, kSmall, 1000);
  bandwidth = kLarge / message_seconds(comm, partner, kLarge, 20);
}

void measure_files(const std::string& path, const Clock& clock, FileSystem& files, ProbedRank& mine) {
  constexpr std::size_t kLarge = std::size_t{64} << 20;
  constexpr std::size_t kSmall = 4096;
  const auto directory = files.create_directory(path);
  const std::string name = fmt::format(".lockstep-probe-{}", mine.rank);
  const std::vector<std::byte> bytes(kLarge, std::byte{7});
  const auto write = [&](std::size_t count) {
    const auto file = directory->create(name);
    file->write(std::span(bytes).first(count));
    file->sync();
    file->close();
    directory->remove(name);
  };
  mine.sync_seconds = best_of(5, clock, [&] { write(kSmall); });
  mine.write_bandwidth = kLarge / best_of(2, clock, [&] { write(kLarge); });
}

ExitCode probe(const Communicator& world, const ProbeOptions& options) {
  use_standard_floating_point();
  PosixFileSystem files;
  SystemClock clock;
  const Communicator comm = world.with_policy({.log = Log::standard(""), .limit = Seconds{60}});
  const Topology topology(comm);
  ProbedRank mine{.rank = comm.rank(), .node = topology.my_node};
  const auto kernels = make_kernels();
  comm.barrier("the probe of matrix products");
  mine.flops = matrix_peak(*kernels, clock);
  comm.barrier("the probe of memory");
  mine.memory_bandwidth = memory_bandwidth(clock);
  comm.barrier("the probe of messages inside nodes");
  measure_messages(topology.node, mine.inside_latency, mine.inside_bandwidth);
  comm.barrier("the probe of messages between nodes");
  if (topology.nodes > 1 && topology.node.rank() == 0) {
    measure_messages(topology.column, mine.between_latency, mine.between_bandwidth);
  }
  comm.barrier("the probe of files");
  std::exception_ptr failure;
  if (!options.directory.empty() && topology.node.rank() == 0) {
    try {
      measure_files(options.directory, clock, files, mine);
    } catch (...) {
      failure = std::current_exception();
    }
  }
  throw_together(comm, failure);

  std::array<double, 8> figures{};
  for (std::size_t i = 0; i < figures.size(); ++i) figures[i] = mine.*probe_figures()[i].of;
  const auto all_figures = comm.all_gather(figures);
  const auto all_nodes = comm.all_gather(mine.node);
  on_chief(comm, "the chief to write what was found", [&] {
    std::vector<ProbedRank> ranks;
    for (std::size_t r = 0; r < all_figures.size(); ++r) {
      ProbedRank& rank = ranks.emplace_back();
      rank.rank = static_cast<std::int64_t>(r);
      rank.node = all_nodes[r];
      rank.host = topology.all_nodes.host_of(static_cast<int>(rank.node));
      for (std::size_t i = 0; i < figures.size(); ++i) rank.*probe_figures()[i].of = all_figures[r][i];
    }
    std::fputs(describe(ranks).c_str(), stdout);
    if (!options.report.empty()) write_text(options.report, to_json(ranks), files);
  });
  return ExitCode::done;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  using namespace lockstep;
  std::pair<ProbeOptions, std::string> parsed;
  std::exception_ptr misuse;
  try {
    refuse_untold_tasks();
    parsed = parse(argc, argv);
  } catch (...) {
    misuse = std::current_exception();  // told once MPI says which rank this is
  }
  if (const auto code = refused_before_mpi(misuse)) return *code;
  const Environment environment(&argc, &argv);
  const Communicator world = environment.world();
  return run_program(world, misuse, parsed.second, [&] { return probe(world, parsed.first); });
}
