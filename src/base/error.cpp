#include <lockstep/base/error.hpp>

namespace lockstep {
namespace {

std::exception_ptr& last_agreed() noexcept {
  static std::exception_ptr error;
  return error;
}

}  // namespace

void throw_error(ExitCode code, const std::string& message) {
  switch (code) {
    case ExitCode::usage:
      throw UsageError(message);
    case ExitCode::data:
      throw DataError(message);
    case ExitCode::internal:
      throw TrainingError(message);
    case ExitCode::io:
      throw IoError(message);
    case ExitCode::try_again:
      throw DeadlineExceeded(message);
    case ExitCode::environment:
      throw EnvironmentError(message);
    case ExitCode::done:
      break;
  }
  throw InternalError("throw_error called without an error: " + message);
}

ExitCode exit_code_of(const std::exception& error) noexcept {
  const auto* known = dynamic_cast<const Error*>(&error);
  return known == nullptr ? ExitCode::internal : known->exit_code();
}

void note_agreed(const std::exception_ptr& error) noexcept {
  last_agreed() = error;
}

bool is_agreed(const std::exception_ptr& error) noexcept {
  return error != nullptr && error == last_agreed();
}

}  // namespace lockstep
