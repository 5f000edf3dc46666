#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>

namespace lockstep {

/// How a program that uses the library ends (sysexits where one fits). Launchers overwrite exit codes, so the
/// chief also writes the code into `status.json`.
enum class ExitCode : int {
  done = 0,
  usage = 64,        ///< an option or argument is wrong; nothing was done
  data = 65,         ///< missing or damaged data or checkpoint
  internal = 70,     ///< an exception or a loss that is not finite
  io = 74,           ///< input/output failed
  try_again = 75,    ///< stopped early with a good save (or a rank was lost): launch again to go on
  environment = 78,  ///< the environment or the ranks disagree: directory in use, another model
};

/// Root of all errors that are the user's or the machine's fault. The message says the problem with its
/// values, why it is one, and what to do. The code decides how the program ends, and travels between ranks
/// with the message, so that a collective throws the same error on every rank.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode exit_code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

class UsageError : public Error {
 public:
  explicit UsageError(const std::string& message) : Error(ExitCode::usage, message) {}
};

class DataError : public Error {
 public:
  explicit DataError(const std::string& message) : Error(ExitCode::data, message) {}
};

/// Training itself failed: a user's function threw, a loss is not finite.
class TrainingError : public Error {
 public:
  explicit TrainingError(const std::string& message) : Error(ExitCode::internal, message) {}
};

class IoError : public Error {
 public:
  explicit IoError(const std::string& message) : Error(ExitCode::io, message) {}
};

/// A wait reached its limit, or a rank is gone; the next launch can go on from the newest checkpoint.
class DeadlineExceeded : public Error {
 public:
  explicit DeadlineExceeded(const std::string& message) : Error(ExitCode::try_again, message) {}
};

class EnvironmentError : public Error {
 public:
  explicit EnvironmentError(const std::string& message) : Error(ExitCode::environment, message) {}
};

/// Root of all errors that are a bug of this library.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// Throws the class that belongs to `code`, so that an error told by another rank has the type it had there.
[[noreturn]] void throw_error(ExitCode code, const std::string& message);

/// The exit code for an exception: that of an Error, `internal` for anything else. Local.
ExitCode exit_code_of(const std::exception& error) noexcept;

/// Notes that all ranks are told of `error`, which this rank then throws: unlike an exception that other
/// ranks know nothing of, it needs nobody to end them. Local; main thread.
void note_agreed(const std::exception_ptr& error) noexcept;

/// True for the exception that was noted last. Local; main thread.
bool is_agreed(const std::exception_ptr& error) noexcept;

}  // namespace lockstep
