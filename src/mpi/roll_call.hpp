#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <mpi.h>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/digest.hpp>
#include <lockstep/base/process_watch.hpp>

#include "fault_tolerance.hpp"

namespace lockstep {

/// Where MPI survives the loss of a rank: who of a world still lives and answers, found out when something
/// went wrong or all is done. On messages and an agreement of its own, which revoking the world leaves alone.
class RollCall {
 public:
  using Tell = std::function<void(const std::string& text)>;

  /// Collective over `world`.
  explicit RollCall(MPI_Comm world);

  /// Of those that are left: takes over their communicator, and knows them from `before`. Local.
  RollCall(const RollCall& before, MPI_Comm left);

  /// Says to all others that this rank has left what it did. Local, once.
  void answer() const;

  /// Returns when all others have answered or are dead. Those on this host that do neither for `patience` (0:
  /// no limit) are killed, by the lowest rank there that has answered. Local. Throws DeadlineExceeded where
  /// one stays that nobody can kill.
  void await(Seconds patience, const Tell& tell);

  /// Whether all ranks that live say yes: the same word on all of them, whoever dies meanwhile. Collective
  /// over them.
  bool agree(bool yes) const;

  /// A communicator of those that are left. Collective over them.
  MPI_Comm without_lost() const { return lockstep::without_lost(comm_); }

 private:
  struct Peer {
    Digest scope;  ///< equal where ranks can see each other
    std::int64_t pid = 0;
    std::uint64_t start_time = 0;
    char host[64] = {};
  };
  bool has_answered(int rank);
  std::vector<bool> dead() const;
  bool kills_here(const std::vector<bool>& dead) const;

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  std::vector<Peer> peers_;
  std::vector<bool> answered_;
};

}  // namespace lockstep
