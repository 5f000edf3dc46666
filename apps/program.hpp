#pragma once

#include <functional>

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/mpi/environment.hpp>

namespace lockstep {

/// Runs the body of an MPI program and turns how it ends into the exit code of every rank. Errors of the
/// library are thrown on all ranks, so all end in order and the chief prints the message once; after a lost
/// rank, or an exception that nobody agreed on, the whole job is ended.
int run_program(const Communicator& world, const std::function<ExitCode()>& body);

}  // namespace lockstep
