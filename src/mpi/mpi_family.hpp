#pragma once

#include <memory>

#include <mpi.h>

namespace lockstep {

/// What a transport shares with all that were split from it.
struct MpiFamily {
  MPI_Comm root = MPI_COMM_NULL;  ///< of the first of them
  bool abandoned = false;         ///< a wait reached its limit: nothing is freed, and MPI is not finalized
  bool lost = false;              ///< a rank has died: nothing is freed

  /// Freeing is collective, and not all would come.
  bool is_broken() const noexcept { return abandoned || lost; }
};

// Fault tolerance (ULFM, in Open MPI 5): the library says that a rank has died, and goes on with the others.

/// The library can, and the launcher has switched it on (`mpirun --with-ft ulfm`). Local.
bool survives_losses() noexcept;

/// A rank of `comm` has died, or another rank has seen that and said so. Local.
bool has_lost(MPI_Comm comm) noexcept;

/// Tells all ranks of `comm` that are left, and returns a communicator of these, in their order. Collective
/// over them.
MPI_Comm without_lost(MPI_Comm comm);

}  // namespace lockstep
