#pragma once

#include <memory>

#include <mpi.h>

#include "roll_call.hpp"

namespace lockstep {

/// What a transport shares with all that were split from it.
struct MpiFamily {
  MPI_Comm root = MPI_COMM_NULL;   ///< of the first of them
  bool abandoned = false;          ///< a wait reached its limit: nothing is freed, and MPI is not finalized
  bool lost = false;               ///< a rank has died: nothing is freed
  std::unique_ptr<RollCall> roll;  ///< where MPI survives that

  /// Freeing is collective, and not all would come.
  bool is_broken() const noexcept { return abandoned || lost; }
};

}  // namespace lockstep
