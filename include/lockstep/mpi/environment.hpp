#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

struct MpiFamily;

/// MPI for the length of its life: initializes it with MPI_THREAD_FUNNELED unless the program has done so,
/// and finalizes what it initialized. While an exception unwinds it does not finalize, since other ranks may
/// never come to it, nor after a wait on one of its worlds has reached its limit; the program then ends
/// through `Communicator::abort`, or by itself, which the launcher takes for a failure. Nor where MPI
/// survives the loss of a rank: there the launcher takes an exit without it for what it is.
class Environment {
 public:
  Environment(int* argc, char*** argv);
  ~Environment();
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

  /// All ranks of the job, on a duplicate of MPI's world, so that messages of the program itself are never
  /// mixed with ours. Collective.
  Communicator world(WaitPolicy policy = {}) const;

  /// MPI would go on with the others if a rank died (Open MPI 5 under `mpirun --with-ft ulfm`). Local.
  static bool survives_losses() noexcept;

  /// A rank of the newest world has died, or one has called `agree_to_end` and not well. What the world and
  /// its parts were used for is over. Local.
  bool has_lost() const noexcept;

  using Tell = std::function<void(const std::string& text)>;

  /// Every rank that lives calls it when it has left what it did with the newest world: `well` where it needs
  /// the others no more, else since a wait ended in DeadlineExceeded. True on all when all are well: nobody
  /// is needed any more. If not, waits until all others have come or are dead; those that do not come for
  /// `patience` (0: no limit) are killed by a rank of their host, where `tell` is called. Collective over the
  /// ranks that live. Throws DeadlineExceeded where a rank hangs that nobody can kill.
  bool agree_to_end(bool well, Seconds patience, const Tell& tell) const;

  /// After `agree_to_end` was false: the ranks of the newest world that are left, in their order, as a new
  /// world; the old one and its parts may still be destroyed. Collective over these. Throws as that.
  Communicator survivors(Seconds patience, const Tell& tell, const WaitPolicy& policy = {}) const;

  /// "Open MPI v4.1.4". Local.
  static std::string library();

 private:
  bool finalize_ = false;
  int exceptions_at_start_ = 0;
  mutable std::vector<std::shared_ptr<MpiFamily>> families_;  ///< of each world
};

}  // namespace lockstep
