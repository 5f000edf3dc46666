#include "roll_call.hpp"

#include <algorithm>
#include <span>

#include <fmt/format.h>

#include <lockstep/base/doze.hpp>
#include <lockstep/base/error.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/mpi/communicator.hpp>

#include "blocking_call.hpp"
#include "mpi_transport.hpp"

namespace lockstep {
namespace {

constexpr int kTag = 1;
constexpr Seconds kBetweenLooks{1e-3};
// How long MPI may take to notice that a killed rank is dead.
constexpr Seconds kNoticed{20};

}  // namespace

RollCall::RollCall(MPI_Comm world) {
  {
    const BlockingCall call("all ranks to make a communicator");
    check_mpi(MPI_Comm_dup(world, &comm_), "MPI_Comm_dup");
  }
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  int size = 1;
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &size), "MPI_Comm_size");
  SystemIdentity process;
  const std::string scope = ProcessWatch::scope();
  Peer mine{.scope = digest_of(std::as_bytes(std::span(scope))),
            .pid = process.pid(),
            .start_time = process.start_time(process.pid()).value_or(0)};
  process.host().copy(mine.host, sizeof mine.host - 1);
  peers_.resize(static_cast<std::size_t>(size));
  answered_.resize(peers_.size());
  const BlockingCall call("all ranks to say who they are");
  check_mpi(MPI_Allgather(&mine, sizeof mine, MPI_BYTE, peers_.data(), sizeof mine, MPI_BYTE, comm_),
            "MPI_Allgather");
}

RollCall::RollCall(const RollCall& before, MPI_Comm left) : comm_(left) {
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  int size = 1;
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &size), "MPI_Comm_size");
  answered_.resize(static_cast<std::size_t>(size));
  for (const int rank : ranks_in(comm_, before.comm_)) {
    peers_.push_back(before.peers_.at(static_cast<std::size_t>(rank)));
  }
}

void RollCall::answer() const {
  for (int rank = 0; rank < static_cast<int>(peers_.size()); ++rank) {
    if (rank == rank_) continue;
    MPI_Request request = MPI_REQUEST_NULL;
    // To a dead rank it fails, which does not matter.
    if (MPI_Isend(nullptr, 0, MPI_BYTE, rank, kTag, comm_, &request) == MPI_SUCCESS) {
      MPI_Request_free(&request);
    }
  }
}

bool RollCall::has_answered(int rank) {
  const auto i = static_cast<std::size_t>(rank);
  if (answered_[i]) return true;
  int there = 0;
  if (MPI_Iprobe(rank, kTag, comm_, &there, MPI_STATUS_IGNORE) != MPI_SUCCESS || there == 0) return false;
  MPI_Recv(nullptr, 0, MPI_BYTE, rank, kTag, comm_, MPI_STATUS_IGNORE);
  answered_[i] = true;
  return true;
}

std::vector<bool> RollCall::dead() const {
  std::vector<bool> dead(peers_.size());
  for (const int rank : lost_ranks(comm_)) dead[static_cast<std::size_t>(rank)] = true;
  return dead;
}

/// The lowest rank of this host that has answered does.
bool RollCall::kills_here(const std::vector<bool>& dead) const {
  const auto mine = static_cast<std::size_t>(rank_);
  for (std::size_t i = 0; i < mine; ++i) {
    if (peers_[i].scope == peers_[mine].scope && answered_[i] && !dead[i]) return false;
  }
  return true;
}

void RollCall::await(Seconds patience, const Tell& tell) {
  const SystemClock clock;
  const Seconds start = clock.now();
  std::vector<bool> killed(peers_.size());
  for (;;) {
    const std::vector<bool> gone = dead();
    std::vector<int> missing;
    for (int rank = 0; rank < static_cast<int>(peers_.size()); ++rank) {
      const auto i = static_cast<std::size_t>(rank);
      if (rank != rank_ && !gone[i] && !has_answered(rank)) missing.push_back(rank);
    }
    if (missing.empty()) return;
    const Seconds waited = clock.now() - start;
    if (patience.count() > 0 && waited >= patience) {
      const Peer& mine = peers_[static_cast<std::size_t>(rank_)];
      const bool kills = kills_here(gone);
      for (const int rank : missing) {
        const auto i = static_cast<std::size_t>(rank);
        const Peer& peer = peers_[i];
        if (!kills || killed[i] || peer.scope != mine.scope) continue;
        killed[i] = true;
        tell(fmt::format("rank {} (pid {} on {}) has not answered for {:.1f} s and is killed", rank, peer.pid,
                         peer.host, waited.count()));
        ProcessWatch::kill({peer.pid, peer.start_time});
      }
      if (waited >= patience + kNoticed) {
        throw DeadlineExceeded(fmt::format(
            "{} {} not answer, and no rank on the same host can end {}; look at their hosts, and launch "
            "again to go on from the newest checkpoint",
            (missing.size() == 1 ? "rank " : "ranks ") + to_string_ranks(missing),
            missing.size() == 1 ? "does" : "do", missing.size() == 1 ? "it" : "them"));
      }
    }
    doze(kBetweenLooks);
  }
}

bool RollCall::agree(bool yes) const {
  const BlockingCall call("the ranks that are left to agree");
  return agree_on(comm_, yes);
}

}  // namespace lockstep
