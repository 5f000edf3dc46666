#include "meter.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

#include <mpi.h>
#include <simgrid/s4u/Actor.hpp>

namespace lockstep::simulated {
namespace {

std::vector<Metered> now;     // of each rank
std::vector<int> inside_mpi;  // the same: calls under way
std::vector<std::pair<std::string, std::vector<Metered>>> phases;
bool metering = false;

/// That runs: actors are made first, and in the order of ranks. Nobody: the simulator itself.
Metered* mine() noexcept {
  if (!metering) return nullptr;
  const simgrid::s4u::Actor* const actor = simgrid::s4u::Actor::self();
  if (actor == nullptr) return nullptr;
  const auto rank = static_cast<std::size_t>(actor->get_pid()) - 1;
  return rank < now.size() ? &now[rank] : nullptr;
}

// In front of each piece of memory, so that it is given back to who asked for it.
struct alignas(16) Label {
  Metered* owner;
  std::size_t bytes;
};

void* allocate(std::size_t bytes, std::size_t alignment) {
  const std::size_t front = std::max(alignment, sizeof(Label));
  void* const start = std::aligned_alloc(front, (bytes + 2 * front - 1) / front * front);
  if (start == nullptr) throw std::bad_alloc();
  void* const memory = static_cast<std::byte*>(start) + front;
  Label& label = static_cast<Label*>(memory)[-1];
  Metered* const rank = mine();
  // What SMPI itself allocates is no part of the project.
  const bool ours = rank != nullptr && inside_mpi[static_cast<std::size_t>(rank - now.data())] == 0;
  label = {ours ? rank : nullptr, bytes};
  if (label.owner != nullptr) {
    label.owner->live_bytes += static_cast<std::int64_t>(bytes);
    label.owner->peak_bytes = std::max(label.owner->peak_bytes, label.owner->live_bytes);
  }
  return memory;
}

void release(void* memory, std::size_t alignment) noexcept {
  if (memory == nullptr) return;
  const Label& label = static_cast<Label*>(memory)[-1];
  if (metering && label.owner != nullptr) label.owner->live_bytes -= static_cast<std::int64_t>(label.bytes);
  std::free(static_cast<std::byte*>(memory) - std::max(alignment, sizeof(Label)));
}

class InsideMpi {
 public:
  InsideMpi() {
    if (const Metered* const rank = mine()) calls_ = &inside_mpi[static_cast<std::size_t>(rank - now.data())];
    if (calls_ != nullptr) ++*calls_;
  }
  ~InsideMpi() {
    if (calls_ != nullptr) --*calls_;
  }
  InsideMpi(const InsideMpi&) = delete;
  InsideMpi& operator=(const InsideMpi&) = delete;

 private:
  int* calls_ = nullptr;
};

void count_collective(std::int64_t gathered) {
  if (Metered* const rank = mine()) {
    ++rank->collectives;
    rank->gathered_bytes += gathered;
  }
}

std::int64_t bytes_of(int count, MPI_Datatype type) {
  int size = 0;
  PMPI_Type_size(type, &size);
  return std::int64_t{count} * size;
}

int size_of(MPI_Comm comm) {
  int size = 0;
  PMPI_Comm_size(comm, &size);
  return size;
}

}  // namespace

void start_metering(int ranks) {
  now.assign(static_cast<std::size_t>(ranks), {});
  inside_mpi.assign(now.size(), 0);
  metering = true;
}

void stop_metering() noexcept {
  metering = false;
}

void pass_phase(const std::string& phase) {
  Metered* const rank = mine();
  if (rank == nullptr) return;
  metering = false;  // what is kept here is nobody's
  auto of_phase = std::find_if(phases.begin(), phases.end(), [&](const auto& p) { return p.first == phase; });
  if (of_phase == phases.end())
    of_phase = phases.insert(phases.end(), {phase, std::vector<Metered>(now.size())});
  of_phase->second[static_cast<std::size_t>(rank - now.data())] = *rank;
  rank->peak_bytes = rank->live_bytes;
  metering = true;
}

const std::vector<std::pair<std::string, std::vector<Metered>>>& metered() {
  return phases;
}

}  // namespace lockstep::simulated

void* operator new(std::size_t bytes) {
  return lockstep::simulated::allocate(bytes, 16);
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return lockstep::simulated::allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  lockstep::simulated::release(memory, 16);
}
void operator delete(void* memory, std::size_t) noexcept {
  lockstep::simulated::release(memory, 16);
}
void operator delete(void* memory, std::align_val_t alignment) noexcept {
  lockstep::simulated::release(memory, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory, std::size_t, std::align_val_t alignment) noexcept {
  lockstep::simulated::release(memory, static_cast<std::size_t>(alignment));
}

extern "C" {

int MPI_Isend(const void* buffer, int count, MPI_Datatype type, int destination, int tag, MPI_Comm comm,
              MPI_Request* request) {
  using namespace lockstep::simulated;
  if (Metered* const rank = mine()) {
    ++rank->sends;
    rank->sent_bytes += bytes_of(count, type);
  }
  const InsideMpi inside;
  return PMPI_Isend(buffer, count, type, destination, tag, comm, request);
}

int MPI_Irecv(void* buffer, int count, MPI_Datatype type, int source, int tag, MPI_Comm comm,
              MPI_Request* request) {
  using namespace lockstep::simulated;
  if (Metered* const rank = mine()) ++rank->receives;
  const InsideMpi inside;
  return PMPI_Irecv(buffer, count, type, source, tag, comm, request);
}

int MPI_Bcast(void* buffer, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  using namespace lockstep::simulated;
  count_collective(bytes_of(count, type));
  const InsideMpi inside;
  return PMPI_Bcast(buffer, count, type, root, comm);
}

int MPI_Allgather(const void* mine_, int count, MPI_Datatype type, void* all, int all_count,
                  MPI_Datatype all_type, MPI_Comm comm) {
  using namespace lockstep::simulated;
  count_collective(bytes_of(all_count, all_type) * size_of(comm));
  const InsideMpi inside;
  return PMPI_Allgather(mine_, count, type, all, all_count, all_type, comm);
}

int MPI_Allreduce(const void* from, void* into, int count, MPI_Datatype type, MPI_Op operation,
                  MPI_Comm comm) {
  using namespace lockstep::simulated;
  count_collective(bytes_of(count, type));
  const InsideMpi inside;
  return PMPI_Allreduce(from, into, count, type, operation, comm);
}

int MPI_Barrier(MPI_Comm comm) {
  using namespace lockstep::simulated;
  count_collective(0);
  const InsideMpi inside;
  return PMPI_Barrier(comm);
}

int MPI_Comm_split(MPI_Comm comm, int color, int key, MPI_Comm* part) {
  using namespace lockstep::simulated;
  count_collective(0);
  const InsideMpi inside;
  return PMPI_Comm_split(comm, color, key, part);
}

int MPI_Comm_split_type(MPI_Comm comm, int type, int key, MPI_Info info, MPI_Comm* part) {
  using namespace lockstep::simulated;
  count_collective(0);
  const InsideMpi inside;
  return PMPI_Comm_split_type(comm, type, key, info, part);
}

int MPI_Comm_free(MPI_Comm* comm) {
  const lockstep::simulated::InsideMpi inside;
  return PMPI_Comm_free(comm);
}

int MPI_Test(MPI_Request* request, int* done, MPI_Status* status) {
  const lockstep::simulated::InsideMpi inside;
  return PMPI_Test(request, done, status);
}

int MPI_Waitany(int count, MPI_Request* requests, int* index, MPI_Status* status) {
  const lockstep::simulated::InsideMpi inside;
  return PMPI_Waitany(count, requests, index, status);
}

int MPI_Comm_dup(MPI_Comm comm, MPI_Comm* copy) {
  using namespace lockstep::simulated;
  count_collective(0);
  const InsideMpi inside;
  return PMPI_Comm_dup(comm, copy);
}
}
