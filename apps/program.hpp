#pragma once

#include <exception>
#include <functional>
#include <optional>
#include <string>

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/mpi/environment.hpp>

namespace lockstep {

/// The exit code of a process that must not even start MPI, with its message printed: `misuse` says that its
/// launcher has told MPI nothing of the other processes. nullopt for any other misuse, or none.
std::optional<int> refused_before_mpi(const std::exception_ptr& misuse);

/// Runs the body of an MPI program and turns how it ends into the exit code of every rank. Errors of the
/// library are thrown on all ranks, so all end in order and the chief prints the message once; after a lost
/// rank (see PeerWatch), or an exception that nobody agreed on, the whole job is ended.
///
/// The command line was read before MPI could say which rank this is: `misuse` is what was wrong with it, or
/// null, and `print` a text that the chief prints instead of running the body (help, version), or empty.
int run_program(const Communicator& world, const std::exception_ptr& misuse, const std::string& print,
                const std::function<ExitCode()>& body);

}  // namespace lockstep
