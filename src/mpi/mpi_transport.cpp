#include "mpi_transport.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <lockstep/base/doze.hpp>
#include <lockstep/base/error.hpp>
#include <lockstep/base/shared_segment.hpp>

#include "blocking_call.hpp"
#include "fault_tolerance.hpp"
#include "smpi.hpp"

namespace lockstep {
namespace {

static_assert(sizeof(MPI_Request) <= sizeof(Request::handle));

int count_of(std::size_t count) {
  if (count > INT_MAX) {
    throw InternalError(fmt::format("a message of {} elements was not cut into pieces", count));
  }
  return static_cast<int>(count);
}

/// MPI hands its operations nothing but the values, so there can be one function a program.
std::atomic<Transport::Combine> the_combine{nullptr};

void combine_values(void* from, void* into, int* count, MPI_Datatype* type) {
  int size = 0;
  MPI_Type_size(*type, &size);
  const Transport::Combine combine = the_combine.load();
  for (int i = 0; i < *count; ++i) {
    combine(static_cast<const std::byte*>(from) + i * size, static_cast<std::byte*>(into) + i * size);
  }
}

class MpiSharedMemory final : public SharedMemory {
 public:
  MpiSharedMemory(MPI_Comm comm, std::size_t bytes, FirstTouch touch, std::shared_ptr<const MpiFamily> family,
                  std::shared_ptr<const bool> left)
      : family_(std::move(family)), left_(std::move(left)) {
    const BlockingCall call("all ranks of the node to share memory");
    MPI_Info info = MPI_INFO_NULL;
    check_mpi(MPI_Info_create(&info), "MPI_Info_create");
    // Each rank's region on pages of its own: touched first by its owner, so it lies in its memory.
    check_mpi(MPI_Info_set(info, "alloc_shared_noncontig", "true"), "MPI_Info_set");
    void* base = nullptr;
    const int code =
        MPI_Win_allocate_shared(static_cast<MPI_Aint>(bytes + kPage), 1, info, comm, &base, &window_);
    MPI_Info_free(&info);
    check_mpi(code, "MPI_Win_allocate_shared");
    if (touch == FirstTouch::owner) std::memset(base, 0, bytes + kPage);
    check_mpi(MPI_Win_lock_all(MPI_MODE_NOCHECK, window_), "MPI_Win_lock_all");
    // Nobody may look at a region before its owner has zeroed it.
    check_mpi(MPI_Barrier(comm), "MPI_Barrier");
  }

  ~MpiSharedMemory() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    // Freeing is collective: while an exception unwinds, other ranks may never come to it.
    if (finalized != 0 || family_->is_broken() || *left_ || std::uncaught_exceptions() != 0) return;
    const BlockingCall call("all ranks of the node to free shared memory");
    MPI_Win_unlock_all(window_);
    MPI_Win_free(&window_);
  }

  std::span<std::byte> region(int rank) const override {
    MPI_Aint size = 0;
    int unit = 1;
    void* base = nullptr;
    check_mpi(MPI_Win_shared_query(window_, rank, &size, &unit, &base), "MPI_Win_shared_query");
    // Mappings start at pages in every process, so all of them round up by the same amount.
    void* start = base;
    std::size_t space = static_cast<std::size_t>(size);
    if (std::align(kPage, space - kPage, start, space) == nullptr)
      throw InternalError("a window lost its page");
    return {static_cast<std::byte*>(start), static_cast<std::size_t>(size) - kPage};
  }

 private:
  // MPI promises no alignment: this much more is asked for and regions start at pages.
  static constexpr std::size_t kPage = 4096;

  std::shared_ptr<const MpiFamily> family_;
  std::shared_ptr<const bool> left_;
  MPI_Win window_ = MPI_WIN_NULL;
};

/// The same without MPI's windows, which do not survive the loss of a rank: one region after the other in a
/// segment of the operating system.
class SegmentMemory final : public SharedMemory {
 public:
  SegmentMemory(MPI_Comm comm, int rank, int size, std::size_t bytes, FirstTouch touch) {
    const BlockingCall call("all ranks of the node to share memory");
    const std::uint64_t mine = bytes;
    sizes_.resize(static_cast<std::size_t>(size));
    check_mpi(MPI_Allgather(&mine, 1, MPI_UINT64_T, sizes_.data(), 1, MPI_UINT64_T, comm), "MPI_Allgather");
    std::size_t total = 0;
    for (const std::uint64_t length : sizes_) {
      offsets_.push_back(total);
      total += (length + kPage - 1) / kPage * kPage;
    }
    std::array<char, 64> name{};
    std::string problem;
    const auto attempt = [&](auto&& work) {
      try {
        work();
      } catch (const IoError& error) {
        problem = error.what();
      }
    };
    if (rank == 0) attempt([&] { segment_ = SharedSegment::create(total); });
    segment_.name().copy(name.data(), name.size() - 1);
    check_mpi(MPI_Bcast(name.data(), static_cast<int>(name.size()), MPI_CHAR, 0, comm), "MPI_Bcast");
    if (rank != 0 && name[0] != 0) attempt([&] { segment_ = SharedSegment::open(name.data(), total); });
    if (!segment_.bytes().empty() && touch == FirstTouch::owner) {
      std::memset(segment_.bytes().data() + offsets_[static_cast<std::size_t>(rank)], 0, bytes);
    }
    int all = segment_.bytes().empty() ? 0 : 1;
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_MIN, comm), "MPI_Allreduce");
    if (rank == 0) segment_.remove_name();
    if (all == 0) {
      throw EnvironmentError(fmt::format("the ranks of a node cannot share {} bytes of memory{}{}", total,
                                         problem.empty() ? "" : ": ", problem));
    }
  }

  std::span<std::byte> region(int rank) const override {
    const auto i = static_cast<std::size_t>(rank);
    return segment_.bytes().subspan(offsets_[i], sizes_[i]);
  }

 private:
  static constexpr std::size_t kPage = 4096;

  SharedSegment segment_;
  std::vector<std::size_t> offsets_;
  std::vector<std::uint64_t> sizes_;
};

}  // namespace

void check_mpi(int code, std::string_view operation) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  throw DeadlineExceeded(fmt::format(
      "{} failed ({}); a rank or the network was lost: launch again to go on from the newest checkpoint",
      operation, std::string_view(text.data(), static_cast<std::size_t>(length))));
}

bool is_oversubscribed(MPI_Comm comm) {
  if (kRanksAreSimulated) return false;
  const BlockingCall call("all ranks to see which of them share a node");
  MPI_Comm node = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
  int ranks = 1;
  const int code = MPI_Comm_size(node, &ranks);
  MPI_Comm_free(&node);
  check_mpi(code, "MPI_Comm_size");
  return ranks > sysconf(_SC_NPROCESSORS_ONLN);
}

MpiTransport::MpiTransport(MPI_Comm comm, bool oversubscribed, std::shared_ptr<MpiFamily> family)
    : comm_(comm), oversubscribed_(oversubscribed), family_(std::move(family)) {
  if (family_->root == MPI_COMM_NULL) family_->root = comm_;
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
}

MpiTransport::~MpiTransport() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  // Freeing is collective: while an exception unwinds, other ranks may never come to it.
  if (finalized != 0 || family_->is_broken() || *left_ || std::uncaught_exceptions() != 0) return;
  const BlockingCall call("all ranks to free a communicator");
  if (value_op_ != MPI_OP_NULL) MPI_Op_free(&value_op_);
  if (value_type_ != MPI_DATATYPE_NULL) MPI_Type_free(&value_type_);
  MPI_Comm_free(&comm_);
}

Request MpiTransport::started(MPI_Request operation) {
  if (kRanksAreSimulated) return simulated_waits_.begin(operation);
  Request result;
  std::memcpy(result.handle, &operation, sizeof operation);
  result.done = false;
  return result;
}

Request MpiTransport::send(std::span<const std::byte> bytes, int destination, int tag) {
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Isend(bytes.data(), count_of(bytes.size()), MPI_BYTE, destination, tag, comm_, &request),
            "MPI_Isend");
  return started(request);
}

Request MpiTransport::receive(std::span<std::byte> bytes, int source, int tag) {
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Irecv(bytes.data(), count_of(bytes.size()), MPI_BYTE, source, tag, comm_, &request),
            "MPI_Irecv");
  return started(request);
}

bool MpiTransport::has_message(int source, int tag) {
  int there = 0;
  check_mpi(MPI_Iprobe(source, tag, comm_, &there, MPI_STATUS_IGNORE), "MPI_Iprobe");
  return there != 0;
}

Request MpiTransport::broadcast(std::span<std::byte> bytes, int root) {
  if (kRanksAreSimulated) {
    check_mpi(MPI_Bcast(bytes.data(), count_of(bytes.size()), MPI_BYTE, root, comm_), "MPI_Bcast");
    return {};
  }
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Ibcast(bytes.data(), count_of(bytes.size()), MPI_BYTE, root, comm_, &request), "MPI_Ibcast");
  return started(request);
}

Request MpiTransport::all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
  const int count = count_of(mine.size());
  if (kRanksAreSimulated) {
    check_mpi(MPI_Allgather(mine.data(), count, MPI_BYTE, all.data(), count, MPI_BYTE, comm_),
              "MPI_Allgather");
    return {};
  }
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallgather(mine.data(), count, MPI_BYTE, all.data(), count, MPI_BYTE, comm_, &request),
            "MPI_Iallgather");
  return started(request);
}

Request MpiTransport::all_reduce_sum(std::span<float> values) {
  if (kRanksAreSimulated) {
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, values.data(), count_of(values.size()), MPI_FLOAT, MPI_SUM, comm_),
              "MPI_Allreduce");
    return {};
  }
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallreduce(MPI_IN_PLACE, values.data(), count_of(values.size()), MPI_FLOAT, MPI_SUM, comm_,
                           &request),
            "MPI_Iallreduce");
  return started(request);
}

Request MpiTransport::all_reduce_value(std::span<std::byte> value, Combine combine) {
  Transport::Combine before = nullptr;
  if (!the_combine.compare_exchange_strong(before, combine) && before != combine) {
    throw InternalError("all_reduce_value has one way to combine in a program");
  }
  if (value_op_ == MPI_OP_NULL) {
    check_mpi(MPI_Type_contiguous(count_of(value.size()), MPI_BYTE, &value_type_), "MPI_Type_contiguous");
    check_mpi(MPI_Type_commit(&value_type_), "MPI_Type_commit");
    check_mpi(MPI_Op_create(&combine_values, 1, &value_op_), "MPI_Op_create");
  }
  if (kRanksAreSimulated) {
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, value.data(), 1, value_type_, value_op_, comm_), "MPI_Allreduce");
    return {};
  }
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallreduce(MPI_IN_PLACE, value.data(), 1, value_type_, value_op_, comm_, &request),
            "MPI_Iallreduce");
  return started(request);
}

bool MpiTransport::test(Request& request) {
  if (request.done) return true;
  if (kRanksAreSimulated) return simulated_waits_.test(request);
  MPI_Request raw;
  std::memcpy(&raw, request.handle, sizeof raw);
  int done = 0;
  check_mpi(MPI_Test(&raw, &done, MPI_STATUS_IGNORE), "MPI_Test");
  std::memcpy(request.handle, &raw, sizeof raw);
  request.done = done != 0;
  return request.done;
}

std::shared_ptr<Transport> MpiTransport::split(int color, int key) {
  MPI_Comm comm = MPI_COMM_NULL;
  const BlockingCall call("all ranks to make a communicator");
  check_mpi(MPI_Comm_split(comm_, color, key, &comm), "MPI_Comm_split");
  return std::make_shared<MpiTransport>(comm, oversubscribed_, family_);
}

std::shared_ptr<Transport> MpiTransport::split_by_node() {
  MPI_Comm comm = MPI_COMM_NULL;
  const BlockingCall call("all ranks of the node to make a communicator");
  check_mpi(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &comm),
            "MPI_Comm_split_type");
  return std::make_shared<MpiTransport>(comm, oversubscribed_, family_);
}

std::unique_ptr<SharedMemory> MpiTransport::share(std::size_t bytes, FirstTouch touch) {
  if (kRanksAreSimulated) return share_in_process(comm_, rank_, size_, bytes);
  if (survives_losses()) return std::make_unique<SegmentMemory>(comm_, rank_, size_, bytes, touch);
  return std::make_unique<MpiSharedMemory>(comm_, bytes, touch, family_, left_);
}

bool MpiTransport::relax(std::uint64_t turn) {
  if (kRanksAreSimulated) {
    simulated_waits_.relax(turn);
    return true;
  }
  // Spinning beats the scheduler while the partner runs: ranks of a balanced step come within tens of
  // microseconds. After that somebody else has the partner's core, and a rank that still spins burns the time
  // that it will need when the partner has come: beside two busy neighbours on two cores that cost a factor
  // of a hundred.
  constexpr std::uint64_t kSpins = 4000;
  constexpr std::uint64_t kYields = 20;
  constexpr Seconds kDoze{30e-6};
  // A word in shared memory says nothing of the rank that should write it.
  constexpr std::uint64_t kTurnsPerLook = 128;
  if (turn % kTurnsPerLook == kTurnsPerLook - 1 && has_lost(family_->root)) {
    throw DeadlineExceeded("a rank has died");
  }
  const std::uint64_t spins = oversubscribed_ ? 0 : kSpins;
  if (turn < spins) {
    __builtin_ia32_pause();
    return false;
  }
  if (turn < spins + kYields) {
    sched_yield();
  } else {
    doze(kDoze);
  }
  return true;
}

void MpiTransport::abort(int code, std::string_view reason) {
  std::fprintf(stderr, "%.*s\n", static_cast<int>(reason.size()), reason.data());
  std::fflush(stderr);
  MPI_Abort(comm_, code);
  std::_Exit(code);
}

}  // namespace lockstep
