#pragma once

#include <span>
#include <string>
#include <string_view>

#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// Something that must be the same on all ranks.
struct Statement {
  std::string_view what;  ///< "hooks"
  std::string text;       ///< this rank's, a line for each thing
};

/// How many statements one comparison takes.
inline constexpr std::size_t kMaxStatements = 5;

/// Throws EnvironmentError on all ranks where ranks state different things: it names the first statement and
/// line that differs, what the chief has there, and what another rank has and which ranks have the same.
/// Collective: digests are folded (`fold_ranks`); the texts, and a byte of each rank, travel only when they
/// differ.
void compare_ranks(const Communicator& comm, std::span<const Statement> statements);

}  // namespace lockstep
