#include "program.hpp"

#include <cstdio>
#include <exception>
#include <string>

#include <lockstep/base/error.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/mpi/peer_watch.hpp>

#include "slurm.hpp"

namespace lockstep {

namespace {

std::string text_of(const std::exception& error) {
  return std::string("error: ") + error.what() + "\n";
}

}  // namespace

std::optional<int> refused_before_mpi(const std::exception_ptr& misuse) {
  if (!misuse) return std::nullopt;
  try {
    std::rethrow_exception(misuse);
  } catch (const EnvironmentError& error) {
    if (speaks_for_tasks()) std::fputs(text_of(error).c_str(), stderr);
    return static_cast<int>(error.exit_code());
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

int run_program(const Communicator& world, const std::exception_ptr& misuse, const std::string& print,
                const std::function<ExitCode()>& body) {
  try {
    if (misuse) std::rethrow_exception(misuse);
    if (!print.empty()) {
      if (world.is_chief()) std::fputs(print.c_str(), stdout);
      return static_cast<int>(ExitCode::done);
    }
    refuse_singletons(world);
    ThreadExecutor executor;
    SystemIdentity process;
    const PeerWatch watch(world, executor, process);
    const ExitCode code = body();
    world.barrier("all ranks to end");  // who is gone after this is not lost
    return static_cast<int>(code);
  } catch (const DeadlineExceeded& error) {
    world.abort(error.exit_code(), text_of(error));
  } catch (const Error& error) {
    if (world.is_chief() && speaks_for_tasks()) std::fputs(text_of(error).c_str(), stderr);
    return static_cast<int>(error.exit_code());
  } catch (const std::exception& error) {
    world.abort(ExitCode::internal, "rank " + std::to_string(world.rank()) + ": " + text_of(error));
  }
}

}  // namespace lockstep
