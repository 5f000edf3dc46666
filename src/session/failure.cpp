#include "failure.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/mpi/fold_ranks.hpp>
#include <lockstep/session/aborted_error.hpp>

namespace lockstep {
namespace {

enum class Kind : std::int32_t { none, of_code, aborted, unavailable };

/// What a rank tells of its failure before the text.
struct Outcome {
  Kind kind = Kind::none;
  std::int32_t code = 0;
  std::uint32_t phase_length = 0;
  std::uint32_t message_length = 0;
  std::int64_t step = 0;

  bool recoverable() const { return kind == Kind::aborted || kind == Kind::unavailable; }

  /// What weighs most is told; of equals, the first rank's.
  int weight() const { return kind == Kind::none ? 0 : recoverable() ? 1 : 2; }
};

Outcome outcome_of(const Failure& failure, std::string& text) {
  Outcome outcome;
  if (!failure) return outcome;
  try {
    std::rethrow_exception(failure.error);
  } catch (const std::exception& error) {
    outcome.kind = dynamic_cast<const UnavailableError*>(&error) != nullptr ? Kind::unavailable
                   : dynamic_cast<const AbortedError*>(&error) != nullptr   ? Kind::aborted
                                                                            : Kind::of_code;
    outcome.code = static_cast<std::int32_t>(exit_code_of(error));
    text = failure.phase + error.what();
  }
  outcome.phase_length = static_cast<std::uint32_t>(failure.phase.size());
  outcome.message_length = static_cast<std::uint32_t>(text.size()) - outcome.phase_length;
  outcome.step = failure.step;
  return outcome;
}

std::exception_ptr make_error(const Outcome& outcome, const std::string& message) {
  if (outcome.kind == Kind::aborted) return std::make_exception_ptr(AbortedError(message));
  if (outcome.kind == Kind::unavailable) return std::make_exception_ptr(UnavailableError(message));
  try {
    throw_error(static_cast<ExitCode>(outcome.code), message);
  } catch (...) {
    return std::current_exception();
  }
}

bool is_ours(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error&) {
    return true;
  } catch (...) {
    return false;
  }
}

[[noreturn]] void throw_agreed(const Communicator& comm, const Failure& mine, const Outcome& outcome,
                               std::string text, int rank) {
  text.resize(outcome.phase_length + outcome.message_length);
  comm.broadcast_values(std::span(text), rank);
  AgreedFailure agreed(text.substr(outcome.phase_length));
  agreed.rank = rank;
  agreed.step = outcome.step;
  agreed.phase = text.substr(0, outcome.phase_length);
  agreed.message = text.substr(outcome.phase_length);
  agreed.recoverable = outcome.recoverable();
  const bool own = rank == comm.rank();
  // A type that is not ours is left as it is: the others cannot throw it, but a handler here may be waiting
  // for it. The chief's own keeps all its facts.
  if (own && (rank == 0 || !is_ours(mine.error))) {
    agreed.error = mine.error;
  } else {
    agreed.error =
        make_error(outcome, rank == 0 ? agreed.message : fmt::format("rank {}: {}", rank, agreed.message));
  }
  note_agreed(agreed.error);
  throw AgreedFailure(std::move(agreed));
}

}  // namespace

std::string describe(const AgreedFailure& failure) {
  return fmt::format("rank {} failed at step {}{}{}: {}", failure.rank, failure.step,
                     failure.phase.empty() ? "" : " in ", failure.phase, failure.message);
}

Failure current_failure(std::string phase, std::int64_t step) {
  try {
    throw;
  } catch (const std::exception&) {
    return {std::current_exception(), std::move(phase), step};
  } catch (...) {
    return {std::make_exception_ptr(TrainingError("an exception of an unknown type")), std::move(phase),
            step};
  }
}

bool is_aborted(const std::exception_ptr& error) {
  if (!error) return false;
  try {
    std::rethrow_exception(error);
  } catch (const AbortedError&) {
    return true;
  } catch (...) {
    return false;
  }
}

void agree(const Communicator& comm, const Failure& mine) {
  std::string text;
  struct OfRank {
    Outcome outcome;
    int rank;
  };
  const auto told =
      fold_ranks(comm, "all ranks to agree how they fare", OfRank{outcome_of(mine, text), comm.rank()},
                 [](const OfRank& left, const OfRank& right) {
                   return left.outcome.weight() >= right.outcome.weight() ? left : right;
                 });
  if (told.outcome.kind == Kind::none) return;
  throw_agreed(comm, mine, told.outcome, std::move(text), told.rank);
}

void agree_with_chief(const Communicator& comm, std::string_view what, const Failure& mine) {
  std::string text;
  Outcome outcome = outcome_of(mine, text);
  comm.broadcast(std::as_writable_bytes(std::span(&outcome, 1)), 0, what);
  if (outcome.kind == Kind::none) return;
  throw_agreed(comm, mine, outcome, std::move(text), 0);
}

}  // namespace lockstep
