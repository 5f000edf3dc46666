#include "program.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <span>
#include <string>

#include <fmt/format.h>

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

CallWatch watch_calls(Executor& executor, double hang_limit_secs, double max_wait_secs) {
  SystemIdentity process;
  const bool starts_in_time = hang_limit_secs > 0 && max_wait_secs > 0;
  return CallWatch(executor, process,
                   {.start = Seconds{starts_in_time ? hang_limit_secs + max_wait_secs : 0},
                    .call = Seconds{hang_limit_secs}});
}

namespace {

/// What a rank tells of its end.
struct Ending {
  std::int32_t failed = 0;
  std::int32_t code = 0;
  std::uint32_t length = 0;
};

/// How long a rank that failed waits for the others. Those that know of the failure may still have to write
/// what they had begun to save; those that do not know will not come, but for the chief's word on what all
/// have waited for.
Seconds patience(const Communicator& world, const std::exception_ptr& failure, const Error* ours) {
  const bool told = is_agreed(failure) || (ours != nullptr && ours->exit_code() != ExitCode::try_again);
  if (told) return Seconds{600};
  return Seconds{world.is_chief() ? 2.0 : 3.0};  // so that the chief speaks, where it is there
}

/// Whether a rank has died and the others can go on without it.
using Lost = std::function<bool()>;

/// The exit code on which all ranks agree; none when a rank was lost.
std::optional<int> leave(const Communicator& world, const Communicator& parting, ExitCode code,
                         const std::exception_ptr& failure, const Lost& lost, bool again) {
  Ending mine;
  std::string text;
  WaitPolicy policy = parting.policy();
  if (failure) {
    const Error* ours = nullptr;
    try {
      std::rethrow_exception(failure);
    } catch (const std::exception& error) {
      ours = dynamic_cast<const Error*>(&error);
      code = exit_code_of(error);
      text = error.what();
      policy.limit = patience(world, failure, ours);
    } catch (...) {
      code = ExitCode::internal;
      text = "an exception of an unknown type";
      policy.limit = patience(world, failure, nullptr);
    }
    mine = {1, static_cast<std::int32_t>(code), static_cast<std::uint32_t>(text.size())};
  }
  try {
    const Communicator meeting = parting.with_policy(policy);
    const auto endings = meeting.all_gather(mine);
    const auto first = std::ranges::find_if(endings, [](const Ending& ending) { return ending.failed != 0; });
    if (first == endings.end()) return static_cast<int>(code);
    const int rank = static_cast<int>(first - endings.begin());
    text.resize(first->length);
    meeting.broadcast_values(std::span(text), rank);
    if (world.is_chief() && (again || speaks_for_tasks())) {
      std::fprintf(stderr, "error: %s%s\n", rank == 0 ? "" : fmt::format("rank {}: ", rank).c_str(),
                   text.c_str());
    }
    return first->code;
  } catch (const DeadlineExceeded& missing) {
    if (lost()) return std::nullopt;
    if (!failure) world.abort(missing.exit_code(), text_of(missing));
    world.abort(code, code == ExitCode::try_again ? fmt::format("error: {}\n", text)
                                                  : fmt::format("error: rank {}: {}\n", world.rank(), text));
  }
}

std::optional<int> attempt(const Communicator& world, const std::exception_ptr& misuse,
                           const std::string& print, const std::function<ExitCode()>& body, const Lost& lost,
                           bool again = false) {
  // Of its own, so that it is not mixed up with what a rank that fails leaves half done.
  const Communicator parting = world.split(0, world.rank());
  ThreadExecutor executor;
  SystemIdentity process;
  std::optional<PeerWatch> watch;
  ExitCode code = ExitCode::done;
  std::exception_ptr failure;
  try {
    if (misuse) std::rethrow_exception(misuse);
    if (print.empty()) {
      if (!again) refuse_singletons(world);
      if (!Environment::survives_losses()) watch.emplace(world, executor, process);
      code = body();
    } else if (world.is_chief()) {
      std::fputs(print.c_str(), stdout);
    }
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure && lost()) return std::nullopt;
  return leave(world, parting, code, failure, lost, again);  // who is gone after this is not lost
}

}  // namespace

int run_program(const Communicator& world, const std::exception_ptr& misuse, const std::string& print,
                const std::function<ExitCode()>& body) {
  return attempt(world, misuse, print, body, [] { return false; }).value();
}

int run_program(const Environment& environment, const std::exception_ptr& misuse, const std::string& print,
                const std::function<ExitCode(const Communicator& world)>& body) {
  std::optional<Communicator> world = environment.world();
  for (bool again = false;; again = true) {
    try {
      const auto code = attempt(
          *world, misuse, print, [&] { return body(*world); }, [&] { return environment.has_lost(); }, again);
      if (code) return *code;
    } catch (const DeadlineExceeded&) {
      if (!environment.has_lost()) throw;
    }
    const int before = world->size();
    try {
      world = environment.survivors();
    } catch (const DeadlineExceeded&) {
      if (!environment.has_lost()) throw;
      continue;  // one more
    }
    if (world->is_chief()) {
      std::fprintf(stderr, "warning: %d of %d ranks died; %d go on from the newest checkpoint\n",
                   before - world->size(), before, world->size());
    }
  }
}

}  // namespace lockstep
