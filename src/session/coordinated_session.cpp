#include "coordinated_session.hpp"

#include <functional>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/mpi/fold_ranks.hpp>

namespace lockstep {
namespace {

std::unique_ptr<CreatedSession> create(SessionCreator& creator) {
  std::unique_ptr<RawSession> raw;
  Failure failure;
  try {
    raw = creator.create_session();
    if (dynamic_cast<CreatedSession*>(raw.get()) == nullptr) {
      throw UsageError("create_session() must return what SessionCreator::create_session made");
    }
  } catch (const AgreedFailure&) {
    throw;
  } catch (const DeadlineExceeded&) {
    throw;  // whoever is missing cannot agree
  } catch (...) {
    failure = current_failure("", creator.ground().state.global_step());
  }
  agree(creator.ground().start, failure);
  return std::unique_ptr<CreatedSession>(static_cast<CreatedSession*>(raw.release()));
}

}  // namespace

CoordinatedSession::CoordinatedSession(SessionCreator& creator, HookedSession& hooked, Seconds grace,
                                       const std::function<void(CreatedSession&)>& ready)
    : ground_(creator.ground()),
      hooked_(hooked),
      grace_(grace),
      created_(create(creator)),
      // It hides nothing: a thread whose input ends stops, and so does the session.
      coordinator_(ground_.config.clock) {
  try {
    hooked_.open(*created_, coordinator_, [&] { ready(*created_); });
  } catch (...) {
    stop_threads();
    hooked_.detach();
    throw;
  }
}

CoordinatedSession::~CoordinatedSession() {
  stop_threads();
  try {
    hooked_.detach();
  } catch (const std::exception& error) {
    ground_.log.error(error.what());
  }
}

void CoordinatedSession::end(bool forgives) {
  Failure failure = hooked_.end(grace_);
  stopped_ = true;
  coordinator_.request_stop("the session ends");
  try {
    coordinator_.join(grace_, true);
  } catch (...) {
    if (!failure && !(forgives && is_aborted(std::current_exception()))) {
      const std::string thread = coordinator_.failed_thread();
      failure = current_failure(thread.empty() ? "a thread" : fmt::format("thread '{}'", thread),
                                ground_.state.global_step());
    }
  }
  // Threads of another rank may take all of their grace.
  const double limit = ground_.comm.policy().limit.count();
  const Communicator waiting = patient(ground_.comm, limit == 0 ? 0 : limit + grace_.count());
  const std::string mine = fmt::format("{}", fmt::join(coordinator_.live_threads(), ", "));
  if (fold_ranks(waiting, "all ranks to say which threads still run", !mine.empty(), std::logical_or<>())) {
    const auto live = waiting.all_gather_text(mine);
    for (std::size_t r = 0; r < live.size(); ++r) {
      if (live[r].empty()) continue;
      ground_.log.warn(fmt::format("threads of rank {} still run after the grace period of {} s: {}", r,
                                   grace_.count(), live[r]));
    }
  }
  agree(waiting, failure);
}

void CoordinatedSession::stop_threads() noexcept {
  if (std::exchange(stopped_, true)) return;
  try {
    coordinator_.request_stop("the session is over");
    coordinator_.join(grace_, false);
  } catch (const std::exception& error) {
    ground_.log.warn(fmt::format("while stopping threads: {}", error.what()));
  } catch (...) {
    ground_.log.warn("while stopping threads: an exception of an unknown type");
  }
}

}  // namespace lockstep
