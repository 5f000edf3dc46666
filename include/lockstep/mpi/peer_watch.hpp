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
/// It ends before MPI is finalized: from then on ranks may leave.
class PeerWatch {
 public:
  using Lost = std::function<void(const std::string& text)>;

  /// Collective: one gather. `lost` is called on the watching thread, once; it must not call MPI. Left out,
  /// it prints the text and ends the process with exit code 75.
  PeerWatch(const Communicator& comm, Executor& executor, ProcessIdentity& process, Lost lost = nullptr);

 private:
  std::vector<int> ranks_;  ///< of each process that is watched
  std::vector<ProcessWatch::Process> processes_;
  std::unique_ptr<ProcessWatch> watch_;
  std::string host_;
  bool told_ = false;
  std::unique_ptr<Periodic> thread_;  // last: it uses everything above
};

}  // namespace lockstep
