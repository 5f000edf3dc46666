#pragma once

#include <exception>
#include <functional>
#include <optional>
#include <string>

#include <lockstep/base/executor.hpp>
#include <lockstep/mpi/call_watch.hpp>
#include <lockstep/mpi/communicator.hpp>
#include <lockstep/mpi/environment.hpp>

namespace lockstep {

/// The exit code of a process that must not even start MPI, with its message printed: `misuse` says that its
/// launcher has told MPI nothing of the other processes. nullopt for any other misuse, or none.
std::optional<int> refused_before_mpi(const std::exception_ptr& misuse);

/// For the calls of MPI that have no limit of their own: that of --hang_limit_secs, and of --max_wait_secs on
/// top while MPI starts, since hosts may come late. 0: no limit. Local.
CallWatch watch_calls(Executor& executor, double hang_limit_secs, double max_wait_secs);

/// Runs the body of an MPI program and turns how it ends into the exit code of every rank. All ranks meet
/// before they leave: where any failed, all have the exit code of the lowest that did, and the chief prints
/// its message once. A rank that failed with what the others may not know of (a wait at its limit, an
/// exception that nobody agreed on) gives them some seconds to come and then ends the job; so does PeerWatch
/// when a rank has died. Collective.
///
/// The command line was read before MPI could say which rank this is: `misuse` is what was wrong with it, or
/// null, and `print` a text that the chief prints instead of running the body (help, version), or empty.
int run_program(const Communicator& world, const std::exception_ptr& misuse, const std::string& print,
                const std::function<ExitCode()>& body);

/// The same for a body that can begin again: where MPI survives the loss of a rank, those that are left run
/// it anew on a world of their own, down to one rank. What it made for the old one must have gone when it is
/// left with an exception. A rank that hangs (a wait has ended in DeadlineExceeded, or it does not answer for
/// `hang_limit` when another is lost; 0: no limit) is killed by one of its host, and is then lost.
int run_program(const Environment& environment, const std::exception_ptr& misuse, const std::string& print,
                Seconds hang_limit, const std::function<ExitCode(const Communicator& world)>& body);

}  // namespace lockstep
