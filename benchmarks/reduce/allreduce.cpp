// How fast is the canonical sum on one node, beside MPI_Allreduce and one memcpy of the same bytes?
//
//   mpirun -n 2 --bind-to none reduce_allreduce [--rounds N] [--fresh] [--bucket_bytes N]
//       [--exchange rounds|buckets] [BYTES...]
//   tests/network/two_nodes 1 reduce_allreduce ...
//   mpirun -n 2 reduce_allreduce --check 8589950976    # more than 2^31 elements: the bits alone, once
//
// With --fresh every rank writes its values anew before each call, as training does, so that they lie in the
// cache of the rank that wrote them; that is not counted, the calls are timed one by one. Without, the calls
// follow each other at once and the ranks go on with what they have.
//
// In every round each of the three is timed in turn, so that a busy moment of the machine hits all of them. A
// sample is the mean over as many calls as take some milliseconds, on the rank that took longest. memcpy runs
// on rank 0 alone, while the others sleep. Before the timing, the bits of the sum are compared with those of
// the serial one.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <mpi.h>

#include <lockstep/mpi/environment.hpp>
#include <lockstep/reduce/reducer.hpp>

namespace {

using namespace lockstep;

constexpr double kSampleSeconds = 0.004;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// What rank `rank` contributes to element `i`: no value that adds up without rounding.
float contribution(int rank, std::size_t i) {
  const auto mixed =
      static_cast<std::uint32_t>((i + 1) * 2654435761U) ^ (static_cast<std::uint32_t>(rank + 1) * 40503U);
  return static_cast<float>(mixed % 2'000'003U) * 1.1e-6F - 1.0F;
}

/// (0+1)+(2+3)..., an odd one passes up unchanged.
float serial_sum(int ranks, std::size_t i) {
  static std::vector<float> level;
  level.clear();
  for (int rank = 0; rank < ranks; ++rank) level.push_back(contribution(rank, i));
  while (level.size() > 1) {
    const std::size_t count = level.size();
    for (std::size_t k = 0; k < count; k += 2) {
      level[k / 2] = k + 1 < count ? level[k] + level[k + 1] : level[k];
    }
    level.resize((count + 1) / 2);
  }
  return level.front();
}

/// Waits for all ranks without taking the core from those that still work.
void sleep_until_all_came() {
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Ibarrier(MPI_COMM_WORLD, &request);
  for (int done = 0; done == 0;) {
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (done == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

struct Samples {
  std::vector<double> seconds;
  double best() const { return *std::min_element(seconds.begin(), seconds.end()); }
  double median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

/// Seconds a call of `work`, of the slowest rank.
template <class Work>
double time_together(int calls, Work work) {
  MPI_Barrier(MPI_COMM_WORLD);
  const double start = now();
  for (int i = 0; i < calls; ++i) work();
  double seconds = (now() - start) / calls;
  MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return seconds;
}

/// The same for a call that follows a `prepare` of all ranks, which does not count.
template <class Prepare, class Work>
double time_each(int calls, Prepare prepare, Work work) {
  std::vector<double> seconds;
  for (int i = 0; i < calls; ++i) {
    prepare();
    seconds.push_back(time_together(1, work));
  }
  return std::accumulate(seconds.begin(), seconds.end(), 0.0) / calls;
}

template <class Work>
int calls_for_a_sample(Work work) {
  work();
  const double once = time_together(3, work);
  return static_cast<int>(std::clamp(kSampleSeconds / once, 1.0, 4096.0));
}

void sum_once(Reducer& reducer, int rank) {
  reducer.begin_micro_batch();
  reducer.end_micro_batch();
  reducer.reduce(Tally(rank));
  reducer.complete_sum();
}

std::string bytes_text(std::size_t bytes) {
  if (bytes >= std::size_t{1} << 20 && bytes % (std::size_t{1} << 20) == 0)
    return std::to_string(bytes >> 20) + " MiB";
  if (bytes >= 1024 && bytes % 1024 == 0) return std::to_string(bytes >> 10) + " KiB";
  return std::to_string(bytes) + " B";
}

std::string seconds_text(double seconds) {
  char text[32];
  if (seconds < 1e-3) {
    std::snprintf(text, sizeof text, "%.2f us", seconds * 1e6);
  } else {
    std::snprintf(text, sizeof text, "%.2f ms", seconds * 1e3);
  }
  return text;
}

/// Sums once, and compares. The sum, on all ranks, of how many elements have other bits than the serial sum.
int wrong_bits(Reducer& reducer, const Communicator& world, std::size_t count) {
  const auto gradients = reducer.begin_micro_batch();
  const std::size_t elements = gradients.size() - kMicroBatchValues;
  for (std::size_t i = 0; i < elements; ++i) gradients[i] = i < count ? contribution(world.rank(), i) : 0.0F;
  reducer.end_micro_batch();
  reducer.reduce(Tally(world.rank()));
  reducer.complete_sum();
  int wrong = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (std::bit_cast<std::uint32_t>(reducer.sum()[i]) !=
        std::bit_cast<std::uint32_t>(serial_sum(world.size(), i)))
      ++wrong;
  }
  MPI_Allreduce(MPI_IN_PLACE, &wrong, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  return wrong;
}

/// For arenas of which there is room for one a rank. False if the bits are wrong.
bool check(const Topology& topology, std::size_t bytes, const ReducerOptions& options) {
  const std::size_t count = bytes / sizeof(float);
  const std::size_t elements = (count + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  const auto reducer =
      make_reducer(ReductionKind::canonical, topology, elements, topology.world.size(), options);
  const double start = now();
  const int wrong = wrong_bits(*reducer, topology.world, count);
  if (topology.world.rank() == 0) {
    std::printf("%zu elements, %s: %d of them wrong, %.1f s\n", count, reducer->describe().c_str(), wrong,
                now() - start);
    std::fflush(stdout);
  }
  return wrong == 0;
}

/// One line of the table. False if the bits are wrong.
bool measure(const Topology& topology, std::size_t bytes, int rounds, bool fresh,
             const ReducerOptions& options) {
  const int rank = topology.world.rank();
  const int ranks = topology.world.size();
  const std::size_t count = bytes / sizeof(float);
  const std::size_t elements = (count + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  const auto reducer = make_reducer(ReductionKind::canonical, topology, elements, ranks, options);

  const int wrong = wrong_bits(*reducer, topology.world, count);
  // From here on all but the first rank add zeros, so that the sum stays what it is however often it is
  // taken.
  const auto next = reducer->begin_micro_batch();
  if (rank != 0) std::fill(next.begin(), next.end(), 0.0F);
  reducer->end_micro_batch();
  reducer->reduce(Tally(rank));
  reducer->complete_sum();

  std::vector<float> send(count, rank == 0 ? 1.5F : 0.0F);
  std::vector<float> receive(count);
  std::vector<float> copy(count, 1.0F);
  const float mine = rank == 0 ? 1.5F : 0.0F;
  const auto write_gradients = [&] {
    const auto next_gradients = reducer->begin_micro_batch();
    std::fill_n(next_gradients.begin(), count, mine);
    reducer->end_micro_batch();
  };
  const auto write_send = [&] { std::fill(send.begin(), send.end(), mine); };
  const auto sum_written = [&] {
    reducer->reduce(Tally(rank));
    reducer->complete_sum();
  };
  const auto canonical = [&] { sum_once(*reducer, rank); };
  const auto mpi = [&] {
    MPI_Allreduce(send.data(), receive.data(), static_cast<int>(count), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
  };
  const auto memory = [&] {
    std::memcpy(copy.data(), send.data(), bytes);
    asm volatile("" : : "r"(copy.data()) : "memory");
  };
  const int canonical_calls = calls_for_a_sample(canonical);
  const int mpi_calls = calls_for_a_sample(mpi);
  const int memory_calls =
      std::clamp(static_cast<int>(kSampleSeconds * 5e9 / static_cast<double>(bytes)), 1, 4096);
  Samples of_canonical;
  Samples of_mpi;
  Samples of_memory;
  for (int round = 0; round < rounds; ++round) {
    if (rank == 0) {
      memory();
      const double start = now();
      for (int i = 0; i < memory_calls; ++i) memory();
      of_memory.seconds.push_back((now() - start) / memory_calls);
    }
    sleep_until_all_came();
    canonical();
    of_canonical.seconds.push_back(
        fresh ? time_each(std::min(canonical_calls, 64), write_gradients, sum_written)
              : time_together(canonical_calls, canonical));
    mpi();
    of_mpi.seconds.push_back(fresh ? time_each(std::min(mpi_calls, 64), write_send, mpi)
                                   : time_together(mpi_calls, mpi));
  }
  if (rank == 0) {
    std::printf("%9s  %10s %10s  %10s %10s  %10s %10s  %6.2f %6.2f  %6.1f %6.1f  %s\n",
                bytes_text(bytes).c_str(), seconds_text(of_memory.best()).c_str(),
                seconds_text(of_memory.median()).c_str(), seconds_text(of_canonical.best()).c_str(),
                seconds_text(of_canonical.median()).c_str(), seconds_text(of_mpi.best()).c_str(),
                seconds_text(of_mpi.median()).c_str(), of_canonical.best() / of_memory.best(),
                of_canonical.median() / of_memory.median(), of_mpi.best() / of_canonical.best(),
                of_mpi.median() / of_canonical.median(), wrong == 0 ? "same" : "WRONG");
    std::fflush(stdout);
  }
  return wrong == 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Environment environment(&argc, &argv);
  const Topology topology(environment.world());
  int rounds = 15;
  bool fresh = false;
  bool only_check = false;
  ReducerOptions options;
  std::vector<std::size_t> sizes;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--rounds" && i + 1 < argc) {
      rounds = std::max(1, std::atoi(argv[++i]));
    } else if (std::string_view(argv[i]) == "--fresh") {
      fresh = true;
    } else if (std::string_view(argv[i]) == "--check") {
      only_check = true;
    } else if (std::string_view(argv[i]) == "--bucket_bytes" && i + 1 < argc) {
      options.bucket_bytes = std::strtoull(argv[++i], nullptr, 10);
    } else if (std::string_view(argv[i]) == "--exchange" && i + 1 < argc) {
      using Exchange = ReducerOptions::Exchange;
      options.exchange = std::string_view(argv[++i]) == "rounds" ? Exchange::doubling : Exchange::buckets;
    } else {
      sizes.push_back(std::max<std::size_t>(4, std::strtoull(argv[i], nullptr, 10)));
    }
  }
  if (sizes.empty()) {
    for (std::size_t bytes = 8; bytes <= 32768; bytes *= 4) sizes.push_back(bytes);
    for (const std::size_t kib : {64, 256, 1024, 4096, 25 * 1024, 100 * 1024}) sizes.push_back(kib * 1024);
  }
  if (topology.world.rank() == 0 && !only_check) {
    std::printf("%d ranks on %d nodes, %d rounds, best and median%s\n", topology.world.size(), topology.nodes,
                rounds, fresh ? ", freshly written" : "");
    std::printf("%9s  %21s  %21s  %21s  %13s  %13s  %s\n", "", "memcpy", "canonical", "MPI_Allreduce",
                "to memcpy", "MPI to it", "bits");
  }
  bool right = true;
  for (const std::size_t bytes : sizes) {
    right =
        (only_check ? check(topology, bytes, options) : measure(topology, bytes, rounds, fresh, options)) &&
        right;
  }
  return right ? EXIT_SUCCESS : EXIT_FAILURE;
}
