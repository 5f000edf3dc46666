#pragma once

#include <string>

#include <lockstep/base/error.hpp>

namespace lockstep {

/// Something that a step or a thread was using went away, and may work when everything is made anew
/// (tf.errors.AbortedError, and UnavailableError below). Where all ranks that failed threw one of these, a
/// MonitoredSession creates itself again on all ranks from the newest checkpoint and repeats the step. A rank
/// whose process is gone is no such error: the others throw DeadlineExceeded, and the next launch goes on.
class AbortedError : public Error {
 public:
  explicit AbortedError(const std::string& message) : Error(ExitCode::try_again, message) {}
};

class UnavailableError final : public AbortedError {
 public:
  using AbortedError::AbortedError;
};

}  // namespace lockstep
