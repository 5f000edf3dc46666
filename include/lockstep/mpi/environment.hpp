#pragma once

#include <memory>
#include <vector>

#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// MPI for the length of its life: initializes it with MPI_THREAD_FUNNELED unless the program has done so,
/// and finalizes what it initialized. While an exception unwinds it does not finalize, since other ranks may
/// never come to it, nor after a wait on one of its worlds has reached its limit; the program then ends
/// through `Communicator::abort`, or by itself, which the launcher takes for a failure.
class Environment {
 public:
  Environment(int* argc, char*** argv);
  ~Environment();
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

  /// All ranks of the job, on a duplicate of MPI's world, so that messages of the program itself are never
  /// mixed with ours. Collective.
  Communicator world(WaitPolicy policy = {}) const;

  /// "Open MPI v4.1.4". Local.
  static std::string library();

 private:
  bool finalize_ = false;
  int exceptions_at_start_ = 0;
  mutable std::vector<std::shared_ptr<const bool>> abandoned_;  ///< of each world
};

}  // namespace lockstep
