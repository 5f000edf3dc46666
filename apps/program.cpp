#include "program.hpp"

#include <cstdio>
#include <exception>
#include <string>

#include <lockstep/base/error.hpp>

namespace lockstep {

int run_program(const Communicator& world, const std::exception_ptr& misuse, const std::string& print,
                const std::function<ExitCode()>& body) {
  const auto text = [&](const std::exception& error) { return std::string("error: ") + error.what() + "\n"; };
  try {
    if (misuse) std::rethrow_exception(misuse);
    if (print.empty()) return static_cast<int>(body());
    if (world.is_chief()) std::fputs(print.c_str(), stdout);
    return static_cast<int>(ExitCode::done);
  } catch (const DeadlineExceeded& error) {
    world.abort(error.exit_code(), text(error));
  } catch (const Error& error) {
    if (world.is_chief()) std::fputs(text(error).c_str(), stderr);
    return static_cast<int>(error.exit_code());
  } catch (const std::exception& error) {
    world.abort(ExitCode::internal, "rank " + std::to_string(world.rank()) + ": " + text(error));
  }
}

}  // namespace lockstep
