#pragma once

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>

#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// What went wrong on this rank, if anything did.
struct Failure {
  std::exception_ptr error;  ///< null: nothing
  std::string phase;         ///< "after_run of 'logging_tensor'"
  std::int64_t step = 0;     ///< the global step when it did

  explicit operator bool() const noexcept { return error != nullptr; }
};

/// A failure that all ranks know, thrown inside the session. `error` is what its user gets.
struct AgreedFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
  std::exception_ptr error;
  int rank = 0;
  std::int64_t step = 0;
  std::string phase;
  std::string message;
  bool recoverable = false;  ///< all that failed threw AbortedError
};

/// "rank 2 failed at step 7 in after_run of 'logging_tensor': disk is full".
std::string describe(const AgreedFailure& failure);

/// The exception being handled, as one that can be told to other ranks.
Failure current_failure(std::string phase, std::int64_t step);

/// Whether it is an AbortedError. Null: no.
bool is_aborted(const std::exception_ptr& error);

/// Throws AgreedFailure on all ranks if any rank has a failure: that of the lowest rank whose failure cannot
/// be recovered from, else of the lowest. Its text is that of the rank, with the rank in front unless it is
/// the chief; an exception whose type is not of this library is thrown as it was where it was thrown first,
/// and as TrainingError elsewhere. Collective: a small value of all ranks is folded (`fold_ranks`), and two
/// broadcasts when there is one.
void agree(const Communicator& comm, const Failure& mine);

/// The same where only the chief can have failed: one broadcast. `what` says what the others wait for.
void agree_with_chief(const Communicator& comm, std::string_view what, const Failure& mine);

}  // namespace lockstep
