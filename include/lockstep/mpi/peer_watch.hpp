#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <lockstep/base/executor.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/base/process_watch.hpp>
#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// Ends a job when one of its ranks is dead: a thread of each rank watches the other ranks of its host, and
/// calls `lost` with a sentence that names the rank. So a killed rank ends all of its host within half a
/// second, whatever the other ranks do and whether the launcher sees to it; the launcher ends other hosts.
///
/// A rank that was stopped (SIGSTOP) is as good as dead, but waits for it may have longer limits, since they
/// cannot tell it from one that has much to do: after `hang_limit` and some more seconds the nearest rank on
/// its host that is not stopped takes it for lost. A whole job that is stopped and goes on is not.
///
/// It ends before MPI is finalized: from then on ranks may leave.
class PeerWatch {
 public:
  using Lost = std::function<void(const std::string& text)>;

  struct Options {
    Lost lost = nullptr;    ///< on the watching thread, once; must not call MPI. Left out, it prints the text
                            ///< and ends the process with exit code 75
    Seconds hang_limit{0};  ///< 0: none
    /// MPI survives the loss of a rank: one that is stopped is killed, which `lost` then says, and nothing is
    /// said of one that is dead.
    bool kills = false;
  };

  /// Collective: a split by nodes, and a gather inside them.
  PeerWatch(const Communicator& comm, Executor& executor, ProcessIdentity& process, Options options);

 private:
  struct Peer {
    int rank = 0;
    ProcessWatch::Process process;
    int stopped = 0;  ///< how often in a row it was seen so
  };
  void look_for_dead();
  void look_for_stopped();
  std::string name(const Peer& peer) const;

  Options options_;
  std::vector<Peer> peers_;  ///< those that are watched, the nearest above this rank first
  std::unique_ptr<ProcessWatch> watch_;
  std::string host_;
  bool told_ = false;
  std::unique_ptr<Periodic> thread_;  // last: it uses everything above
};

}  // namespace lockstep
