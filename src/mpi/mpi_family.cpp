#include "mpi_family.hpp"

#include <lockstep/base/error.hpp>

#include "blocking_call.hpp"
#include "mpi_transport.hpp"

#if defined(OMPI_MAJOR_VERSION) && OMPI_MAJOR_VERSION >= 5 && __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif

namespace lockstep {

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

MPI_Comm without_lost(MPI_Comm comm) {
  const BlockingCall call("the ranks that are left to meet");
  MPIX_Comm_revoke(comm);
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

MPI_Comm without_lost(MPI_Comm) {
  throw InternalError("this MPI does not survive the loss of a rank");
}

#endif

}  // namespace lockstep
