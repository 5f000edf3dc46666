#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <lockstep/hooks/feed_fn.hpp>
#include <lockstep/hooks/logging_tensor.hpp>
#include <lockstep/hooks/nan_tensor.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/mpi/interop.hpp>
#include <lockstep/reduce/reducer.hpp>

#include "session_support.hpp"

// What a session calls of MPI in a step, counted through MPI's profiling interface: the functions below take
// the place of the library's: all that the library calls of those that send, and others that come to mind
// first. What only looks (MPI_Test) is not here.

namespace {

using Calls = std::map<std::string, int>;

Calls& calls() {
  static Calls all;
  return all;
}

}  // namespace

#define LOCKSTEP_COUNTED(name, parameters, arguments) \
  extern "C" int MPI_##name parameters {              \
    ++calls()[#name];                                 \
    return PMPI_##name arguments;                     \
  }

#define LOCKSTEP_SEND(name)                                                                                \
  LOCKSTEP_COUNTED(name, (const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm), \
                   (data, count, type, to, tag, comm))
#define LOCKSTEP_ISEND(name)                                                                        \
  LOCKSTEP_COUNTED(name,                                                                            \
                   (const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm, \
                    MPI_Request* request),                                                          \
                   (data, count, type, to, tag, comm, request))

LOCKSTEP_SEND(Send)
LOCKSTEP_SEND(Bsend)
LOCKSTEP_SEND(Ssend)
LOCKSTEP_SEND(Rsend)
LOCKSTEP_ISEND(Isend)
LOCKSTEP_ISEND(Ibsend)
LOCKSTEP_ISEND(Issend)
LOCKSTEP_ISEND(Irsend)
LOCKSTEP_ISEND(Send_init)
LOCKSTEP_COUNTED(Recv, (void* d, int n, MPI_Datatype t, int from, int tag, MPI_Comm c, MPI_Status* s),
                 (d, n, t, from, tag, c, s))
LOCKSTEP_COUNTED(Irecv, (void* d, int n, MPI_Datatype t, int from, int tag, MPI_Comm c, MPI_Request* r),
                 (d, n, t, from, tag, c, r))
LOCKSTEP_COUNTED(Recv_init, (void* d, int n, MPI_Datatype t, int from, int tag, MPI_Comm c, MPI_Request* r),
                 (d, n, t, from, tag, c, r))
LOCKSTEP_COUNTED(Start, (MPI_Request * r), (r))
LOCKSTEP_COUNTED(Startall, (int n, MPI_Request r[]), (n, r))
LOCKSTEP_COUNTED(Sendrecv,
                 (const void* d, int n, MPI_Datatype t, int to, int tag, void* d2, int n2, MPI_Datatype t2,
                  int from, int tag2, MPI_Comm c, MPI_Status* s),
                 (d, n, t, to, tag, d2, n2, t2, from, tag2, c, s))
LOCKSTEP_COUNTED(Barrier, (MPI_Comm c), (c))
LOCKSTEP_COUNTED(Ibarrier, (MPI_Comm c, MPI_Request* r), (c, r))
LOCKSTEP_COUNTED(Bcast, (void* d, int n, MPI_Datatype t, int root, MPI_Comm c), (d, n, t, root, c))
LOCKSTEP_COUNTED(Ibcast, (void* d, int n, MPI_Datatype t, int root, MPI_Comm c, MPI_Request* r),
                 (d, n, t, root, c, r))
LOCKSTEP_COUNTED(Reduce, (const void* d, void* o, int n, MPI_Datatype t, MPI_Op op, int root, MPI_Comm c),
                 (d, o, n, t, op, root, c))
LOCKSTEP_COUNTED(Ireduce,
                 (const void* d, void* o, int n, MPI_Datatype t, MPI_Op op, int root, MPI_Comm c,
                  MPI_Request* r),
                 (d, o, n, t, op, root, c, r))
LOCKSTEP_COUNTED(Allreduce, (const void* d, void* o, int n, MPI_Datatype t, MPI_Op op, MPI_Comm c),
                 (d, o, n, t, op, c))
LOCKSTEP_COUNTED(Iallreduce,
                 (const void* d, void* o, int n, MPI_Datatype t, MPI_Op op, MPI_Comm c, MPI_Request* r),
                 (d, o, n, t, op, c, r))
LOCKSTEP_COUNTED(Reduce_scatter,
                 (const void* d, void* o, const int n[], MPI_Datatype t, MPI_Op op, MPI_Comm c),
                 (d, o, n, t, op, c))
LOCKSTEP_COUNTED(Reduce_scatter_block, (const void* d, void* o, int n, MPI_Datatype t, MPI_Op op, MPI_Comm c),
                 (d, o, n, t, op, c))
LOCKSTEP_COUNTED(Scan, (const void* d, void* o, int n, MPI_Datatype t, MPI_Op op, MPI_Comm c),
                 (d, o, n, t, op, c))
LOCKSTEP_COUNTED(Gather,
                 (const void* d, int n, MPI_Datatype t, void* o, int m, MPI_Datatype u, int root, MPI_Comm c),
                 (d, n, t, o, m, u, root, c))
LOCKSTEP_COUNTED(Scatter,
                 (const void* d, int n, MPI_Datatype t, void* o, int m, MPI_Datatype u, int root, MPI_Comm c),
                 (d, n, t, o, m, u, root, c))
LOCKSTEP_COUNTED(Allgather,
                 (const void* d, int n, MPI_Datatype t, void* o, int m, MPI_Datatype u, MPI_Comm c),
                 (d, n, t, o, m, u, c))
LOCKSTEP_COUNTED(Iallgather,
                 (const void* d, int n, MPI_Datatype t, void* o, int m, MPI_Datatype u, MPI_Comm c,
                  MPI_Request* r),
                 (d, n, t, o, m, u, c, r))
LOCKSTEP_COUNTED(Allgatherv,
                 (const void* d, int n, MPI_Datatype t, void* o, const int m[], const int at[],
                  MPI_Datatype u, MPI_Comm c),
                 (d, n, t, o, m, at, u, c))
LOCKSTEP_COUNTED(Alltoall, (const void* d, int n, MPI_Datatype t, void* o, int m, MPI_Datatype u, MPI_Comm c),
                 (d, n, t, o, m, u, c))
LOCKSTEP_COUNTED(Put,
                 (const void* d, int n, MPI_Datatype t, int to, MPI_Aint at, int m, MPI_Datatype u,
                  MPI_Win w),
                 (d, n, t, to, at, m, u, w))
LOCKSTEP_COUNTED(Get,
                 (void* d, int n, MPI_Datatype t, int from, MPI_Aint at, int m, MPI_Datatype u, MPI_Win w),
                 (d, n, t, from, at, m, u, w))
LOCKSTEP_COUNTED(Accumulate,
                 (const void* d, int n, MPI_Datatype t, int to, MPI_Aint at, int m, MPI_Datatype u, MPI_Op op,
                  MPI_Win w),
                 (d, n, t, to, at, m, u, op, w))
LOCKSTEP_COUNTED(Win_fence, (int assertion, MPI_Win w), (assertion, w))
LOCKSTEP_COUNTED(Win_flush, (int rank, MPI_Win w), (rank, w))
LOCKSTEP_COUNTED(Win_flush_all, (MPI_Win w), (w))
LOCKSTEP_COUNTED(Comm_dup, (MPI_Comm c, MPI_Comm* o), (c, o))
LOCKSTEP_COUNTED(Comm_split, (MPI_Comm c, int color, int key, MPI_Comm* o), (c, color, key, o))
LOCKSTEP_COUNTED(Comm_split_type, (MPI_Comm c, int type, int key, MPI_Info info, MPI_Comm* o),
                 (c, type, key, info, o))

namespace lockstep {
namespace {

constexpr int kSteps = 10;
constexpr std::int64_t kElements = 5;

/// What `work` calls.
template <class Work>
Calls counted(Work&& work) {
  calls().clear();
  work();
  return std::exchange(calls(), Calls());
}

/// Ten sums of gradients with a ballot, or ballots alone, and nothing else: what has to be sent.
Calls of_reductions(ReductionKind kind, int per_node, bool gradients) {
  const Topology topology(from_mpi(MPI_COMM_WORLD), per_node);
  State state;
  state.parameter("w", {kElements});
  PlainAllocator allocator;
  state.freeze(allocator);
  const auto reducer = make_reducer(kind, topology, state.parameter_elements(), topology.world.size());
  const auto step = [&] {
    if (!gradients) {
      reducer->exchange(Tally(topology.world.rank()));
      return;
    }
    std::ranges::fill(reducer->begin_micro_batch(), 1.0F);
    reducer->end_micro_batch();
    reducer->reduce(Tally(topology.world.rank()));
    // MPI's sum is whole on every rank already; the session knows.
    if (kind == ReductionKind::canonical) reducer->finish();
  };
  step();
  const Calls result = counted([&] {
    for (int i = 0; i < kSteps; ++i) step();
  });
  topology.world.barrier("the test");
  return result;
}

/// Ten steps of a session with all default hooks, and others that have something to agree on; saves,
/// summaries and step rates are due in them, by steps and by seconds.
Calls of_steps(ReductionKind kind, int per_node, bool gradients) {
  const auto world = from_mpi(MPI_COMM_WORLD);
  const test::SharedFolder folder(world);
  test::Rank rank(world, kElements);
  auto options = rank.options(folder.path);
  options.config.reduction = kind;
  options.config.ranks_per_node = per_node;
  options.config.max_run_secs = 1000;
  options.save_checkpoint_secs = 3;
  options.save_checkpoint_steps = 4;
  options.save_summaries_steps = 2;
  options.save_summaries_secs = 3;
  options.log_step_count_steps = 3;
  options.hooks = {std::make_shared<NanTensorHook>(), std::make_shared<StopAtStepHook>(std::nullopt, 20),
                   std::make_shared<LoggingTensorHook>(
                       LoggingTensorHook::Options{.values = {"loss"}, .every_n_secs = 2.0}),
                   std::make_shared<FeedFnHook>([](RunContext&, Feeds&) {})};
  MonitoredTrainingSession session(world, rank.state, options);
  const MonitoredTrainingSession::Step step = gradients ? test::gradient_step : test::plain_step;
  session.run(step);
  const Calls result = counted([&] {
    for (int i = 0; i < kSteps; ++i) {
      rank.clock->advance(Seconds{1});
      session.run(step);
    }
  });
  session.close();
  if (world.is_chief()) CHECK(folder.saved().size() >= 3);  // there was something to do
  return result;
}

std::string text_of(const Calls& all) {
  std::string text;
  for (const auto& [name, count] : all) text += name + " " + std::to_string(count) + " ";
  return text;
}

}  // namespace

TEST_CASE("the calls of MPI are counted") {
  const auto world = from_mpi(MPI_COMM_WORLD);
  const Calls found = counted([&] {
    world.barrier("the test");
    world.all_gather(world.rank());
  });
  if (world.size() > 1) CHECK(found.at("Isend") > 0);
  if (world.size() > 1) CHECK(found.at("Irecv") > 0);
  CHECK(found.at("Iallgather") == 1);
  world.barrier("the test");
}

TEST_CASE("a step with all hooks sends what its gradients and ballot need, and no message more") {
  for (const auto kind : {ReductionKind::canonical, ReductionKind::mpi}) {
    for (const int per_node : {0, 1, 2}) {
      for (const bool gradients : {true, false}) {
        CAPTURE(static_cast<int>(kind));
        CAPTURE(per_node);
        CAPTURE(gradients);
        CHECK(text_of(of_steps(kind, per_node, gradients)) ==
              text_of(of_reductions(kind, per_node, gradients)));
      }
    }
  }
}

TEST_CASE("within a node a step calls nothing that sends") {
  CHECK(text_of(of_steps(ReductionKind::canonical, 0, true)) == "");
  CHECK(text_of(of_steps(ReductionKind::canonical, 0, false)) == "");
}

}  // namespace lockstep
