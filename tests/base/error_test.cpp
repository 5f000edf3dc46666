#include <new>
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/files.hpp>

using namespace lockstep;

namespace {

/// What throw_error throws for `code`, if it is an Expected with that code and message.
template <class Expected>
bool throws(ExitCode code) {
  try {
    throw_error(code, "what happened");
  } catch (const Expected& error) {
    return error.exit_code() == code && error.what() == std::string("what happened");
  } catch (...) {
    return false;
  }
}

}  // namespace

TEST_CASE("an error that crosses ranks as code and message has the type it had") {
  CHECK(throws<UsageError>(ExitCode::usage));
  CHECK(throws<DataError>(ExitCode::data));
  CHECK(throws<TrainingError>(ExitCode::internal));
  CHECK(throws<IoError>(ExitCode::io));
  CHECK(throws<DeadlineExceeded>(ExitCode::try_again));
  CHECK(throws<EnvironmentError>(ExitCode::environment));
  CHECK_THROWS_AS(throw_error(ExitCode::done, "nothing"), InternalError);
}

TEST_CASE("the exit code of a foreign exception is that of an internal error") {
  CHECK(exit_code_of(DataError("x")) == ExitCode::data);
  CHECK(exit_code_of(FileError("write", "f", 28)) == ExitCode::io);
  CHECK(exit_code_of(std::runtime_error("x")) == ExitCode::internal);
  CHECK(exit_code_of(std::bad_alloc()) == ExitCode::internal);
  CHECK(exit_code_of(InternalError("x")) == ExitCode::internal);
}

TEST_CASE("exit codes are those of sysexits") {
  CHECK(static_cast<int>(ExitCode::done) == 0);
  CHECK(static_cast<int>(ExitCode::usage) == 64);
  CHECK(static_cast<int>(ExitCode::data) == 65);
  CHECK(static_cast<int>(ExitCode::internal) == 70);
  CHECK(static_cast<int>(ExitCode::io) == 74);
  CHECK(static_cast<int>(ExitCode::try_again) == 75);
  CHECK(static_cast<int>(ExitCode::environment) == 78);
}
