#pragma once

#include <memory>
#include <vector>

#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

struct MpiFamily;

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

  /// A rank of the newest world has died, and MPI goes on without it (Open MPI 5 under `mpirun --with-ft
  /// ulfm`). What the world and its parts were used for is over. Local.
  bool has_lost() const noexcept;

  /// That MPI would. Local.
  static bool survives_losses() noexcept;

  /// The ranks of the newest world that are left, in their order, as a new world; the old one and its parts
  /// may still be destroyed. Collective over these.
  Communicator survivors(WaitPolicy policy = {}) const;

  /// "Open MPI v4.1.4". Local.
  static std::string library();

 private:
  bool finalize_ = false;
  int exceptions_at_start_ = 0;
  mutable std::vector<std::shared_ptr<MpiFamily>> families_;  ///< of each world
};

}  // namespace lockstep
