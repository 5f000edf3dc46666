#include "program.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/mpi/peer_watch.hpp>

#include "slurm.hpp"

namespace lockstep {

namespace {

std::string text_of(const std::exception& error) {
  return std::string("error: ") + error.what() + "\n";
}

void warn(const std::string& text) {
  std::fprintf(stderr, "warning: %s\n", text.c_str());
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

// How long ranks that live may take to leave what they do, be it a save on a slow disk, once one has waited
// for the limit.
constexpr Seconds kAnswer{30};

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

/// What is different where MPI survives the loss of a rank.
struct Survival {
  const Environment* environment = nullptr;  ///< null: it does not
  bool again = false;                        ///< the body has run before

  /// Whether a rank is missing without which the others can go on, which `error` (or null) may say. One that
  /// hangs is told here; one that has died, once all know.
  bool is_loss(const Error* error) const {
    if (environment == nullptr) return false;
    if (environment->has_lost()) return true;
    if (dynamic_cast<const DeadlineExceeded*>(error) == nullptr) return false;
    warn(error->what());
    return true;
  }
};

/// The exit code on which all ranks agree; none when a rank was lost.
std::optional<int> leave(const Communicator& world, const Communicator& parting, ExitCode code,
                         const std::exception_ptr& failure, const Survival& survival) {
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
    if (world.is_chief() && (survival.again || speaks_for_tasks())) {
      std::fprintf(stderr, "error: %s%s\n", rank == 0 ? "" : fmt::format("rank {}: ", rank).c_str(),
                   text.c_str());
    }
    return first->code;
  } catch (const DeadlineExceeded& missing) {
    // A rank that failed alone ends the job: the others wait for it, and hear of it in no other way.
    if (survival.is_loss(failure ? nullptr : &missing)) return std::nullopt;
    if (!failure) world.abort(missing.exit_code(), text_of(missing));
    world.abort(code, code == ExitCode::try_again ? fmt::format("error: {}\n", text)
                                                  : fmt::format("error: rank {}: {}\n", world.rank(), text));
  }
}

bool is_loss(const Survival& survival, const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    return survival.is_loss(&error);
  } catch (...) {
    return survival.is_loss(nullptr);
  }
}

std::optional<int> attempt(const Communicator& world, const std::exception_ptr& misuse,
                           const std::string& print, const std::function<ExitCode()>& body,
                           const Survival& survival = {}) {
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
      if (!survival.again) refuse_singletons(world);
      // One that is stopped while a session is made hangs for much longer than `hang_limit`, or so it seems
      // to the others: the chief may read for long.
      PeerWatch::Options options{.hang_limit = parting.policy().limit};
      if (survival.environment != nullptr) {
        options.kills = true;
        options.lost = warn;
      }
      watch.emplace(world, executor, process, std::move(options));
      code = body();
    } else if (world.is_chief()) {
      std::fputs(print.c_str(), stdout);
    }
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure && is_loss(survival, failure)) return std::nullopt;
  return leave(world, parting, code, failure, survival);  // who is gone after this is not lost
}

}  // namespace

int run_program(const Communicator& world, const std::exception_ptr& misuse, const std::string& print,
                const std::function<ExitCode()>& body) {
  return attempt(world, misuse, print, body).value();
}

int run_program(const Environment& environment, const std::exception_ptr& misuse, const std::string& print,
                Seconds hang_limit, const std::function<ExitCode(const Communicator& world)>& body) {
  // Also of what is waited for before and after the body.
  const WaitPolicy policy{.log = Log::standard(""), .limit = hang_limit};
  std::optional<Communicator> world = environment.world().with_policy(policy);
  if (!Environment::survives_losses()) {
    return run_program(*world, misuse, print, [&] { return body(*world); });
  }
  for (Survival survival{&environment};; survival.again = true) {
    std::optional<int> code;
    try {
      code = attempt(
          *world, misuse, print, [&] { return body(*world); }, survival);
    } catch (const DeadlineExceeded& error) {
      if (!survival.is_loss(&error)) throw;
    }
    // Where a wait has reached its limit, those that live leave theirs at once.
    const Seconds patience = code || environment.has_lost() ? hang_limit : std::min(hang_limit, kAnswer);
    const int before = world->size();
    try {
      if (environment.agree_to_end(code.has_value(), patience, warn)) return *code;
      world = environment.survivors(patience, warn).with_policy(policy);
    } catch (const DeadlineExceeded& hung) {
      world->abort(hung.exit_code(), text_of(hung));
    }
    const int lost = before - world->size();
    if (lost == 0) {
      world->abort(ExitCode::try_again,
                   "error: a wait has reached its limit although all ranks are there and answer");
    }
    if (world->is_chief()) {
      warn(fmt::format("{} of {} ranks {} lost; {} {} on", lost, before, lost == 1 ? "was" : "were",
                       world->size(), world->size() == 1 ? "goes" : "go"));
    }
  }
}

}  // namespace lockstep
