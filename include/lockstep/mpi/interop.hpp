#pragma once

#include <mpi.h>

#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// A communicator over the ranks of `comm`, which stays the caller's: messages go over a duplicate.
/// Collective over `comm`. MPI must be initialized, by the caller or by an Environment.
Communicator from_mpi(MPI_Comm comm, WaitPolicy policy = {});

}  // namespace lockstep
