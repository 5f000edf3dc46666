#pragma once

#include <vector>

#include <mpi.h>

namespace lockstep {

// Fault tolerance (ULFM, in Open MPI 5): the library says that a rank has died, and goes on with the others.

/// The library can, and the launcher has switched it on (`mpirun --with-ft ulfm`). Local.
bool survives_losses() noexcept;

/// A rank of `comm` has died, or another rank has seen that and said so. Local.
bool has_lost(MPI_Comm comm) noexcept;

/// The ranks of `comm` that are known to be dead. Local.
std::vector<int> lost_ranks(MPI_Comm comm);

/// Which ranks of `whole` those of `part` are, in their order. Local.
std::vector<int> ranks_in(MPI_Comm part, MPI_Comm whole);

/// Tells all ranks of `comm` that are left: their waits end. Local.
void revoke(MPI_Comm comm) noexcept;

/// Whether all ranks of `comm` that live say yes; the same on all of them. Collective over them.
bool agree_on(MPI_Comm comm, bool yes);

/// A communicator of the ranks of `comm` that are left, in their order. Collective over them.
MPI_Comm without_lost(MPI_Comm comm);

}  // namespace lockstep
