#include "fault_tolerance.hpp"

#include <numeric>

#include <lockstep/base/error.hpp>

#include "blocking_call.hpp"
#include "mpi_transport.hpp"

#if defined(OMPI_MAJOR_VERSION) && OMPI_MAJOR_VERSION >= 5 && __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif

namespace lockstep {
namespace {

std::vector<int> ranks_in(MPI_Group part, MPI_Comm whole) {
  int count = 0;
  MPI_Group_size(part, &count);
  std::vector<int> places(static_cast<std::size_t>(count));
  std::iota(places.begin(), places.end(), 0);
  std::vector<int> ranks(places.size());
  MPI_Group all = MPI_GROUP_NULL;
  MPI_Comm_group(whole, &all);
  MPI_Group_translate_ranks(part, count, places.data(), all, ranks.data());
  MPI_Group_free(&all);
  return ranks;
}

}  // namespace

std::vector<int> ranks_in(MPI_Comm part, MPI_Comm whole) {
  MPI_Group group = MPI_GROUP_NULL;
  MPI_Comm_group(part, &group);
  std::vector<int> ranks = ranks_in(group, whole);
  MPI_Group_free(&group);
  return ranks;
}

#if defined(OMPI_HAVE_MPIX_COMM_GET_FAILED)

bool survives_losses() noexcept {
  void* value = nullptr;
  int found = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPIX_FT, &value, &found);
  return found != 0 && *static_cast<int*>(value) != 0;
}

bool has_lost(MPI_Comm comm) noexcept {
  if (!survives_losses() || comm == MPI_COMM_NULL) return false;
  // Also moves MPI on, which hears of a loss only then; a rank that waits on shared memory does nothing else.
  int there = 0;
  if (MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm, &there, MPI_STATUS_IGNORE) != MPI_SUCCESS) return true;
  int revoked = 0;
  MPIX_Comm_is_revoked(comm, &revoked);
  if (revoked != 0) return true;
  MPI_Group failed = MPI_GROUP_NULL;
  if (MPIX_Comm_get_failed(comm, &failed) != MPI_SUCCESS) return true;
  int count = 0;
  MPI_Group_size(failed, &count);
  if (failed != MPI_GROUP_EMPTY && failed != MPI_GROUP_NULL) MPI_Group_free(&failed);
  return count > 0;
}

std::vector<int> lost_ranks(MPI_Comm comm) {
  MPI_Group failed = MPI_GROUP_NULL;
  check_mpi(MPIX_Comm_get_failed(comm, &failed), "MPIX_Comm_get_failed");
  std::vector<int> ranks = ranks_in(failed, comm);
  if (failed != MPI_GROUP_EMPTY) MPI_Group_free(&failed);
  return ranks;
}

void revoke(MPI_Comm comm) noexcept {
  MPIX_Comm_revoke(comm);
}

bool agree_on(MPI_Comm comm, bool yes) {
  int all = yes ? 1 : 0;
  // It also says that a rank has died, which is known; the word is good all the same.
  MPIX_Comm_agree(comm, &all);
  return all != 0;
}

MPI_Comm without_lost(MPI_Comm comm) {
  const BlockingCall call("the ranks that are left to meet");
  MPI_Comm left = MPI_COMM_NULL;
  check_mpi(MPIX_Comm_shrink(comm, &left), "MPIX_Comm_shrink");
  return left;
}

#else

bool survives_losses() noexcept {
  return false;
}

bool has_lost(MPI_Comm) noexcept {
  return false;
}

std::vector<int> lost_ranks(MPI_Comm) {
  return {};
}

void revoke(MPI_Comm) noexcept {}

bool agree_on(MPI_Comm, bool yes) {
  return yes;
}

MPI_Comm without_lost(MPI_Comm) {
  throw InternalError("this MPI does not survive the loss of a rank");
}

#endif

}  // namespace lockstep
