#pragma once

#include <functional>
#include <memory>
#include <string>

#include <lockstep/session/coordinator.hpp>

#include "hooked_session.hpp"

namespace lockstep {

/// A session with the threads that its hooks may start. Made anew with each recovery; only one at a time.
class CoordinatedSession {
 public:
  /// Makes a session, gives it a coordinator and binds the hooks to both; `ready` is called before their
  /// after_create_session. Collective; throws what the creator and the hooks throw.
  CoordinatedSession(SessionCreator& creator, HookedSession& hooked, Seconds grace,
                     const std::function<void(CreatedSession&)>& ready);

  /// Stops the threads and unbinds the hooks; never throws.
  ~CoordinatedSession();
  CoordinatedSession(const CoordinatedSession&) = delete;
  CoordinatedSession& operator=(const CoordinatedSession&) = delete;

  /// After all ranks have agreed to close: ends the hooks, makes the final save and stops the threads. Throws
  /// AgreedFailure; the session has ended all the same. `forgives`: not for threads that were lost.
  /// Collective.
  void end(bool forgives);

  /// Asks the threads to stop and gives them the grace period. What they report, and which of them live on,
  /// is logged. Local.
  void stop_threads() noexcept;

  CreatedSession& created() noexcept { return *created_; }
  Coordinator& coordinator() noexcept { return coordinator_; }

 private:
  SessionGround& ground_;
  HookedSession& hooked_;
  Seconds grace_;
  std::unique_ptr<CreatedSession> created_;
  Coordinator coordinator_;
  bool stopped_ = false;
};

}  // namespace lockstep
