#pragma once

#include <functional>
#include <memory>
#include <string>

#include <lockstep/session/monitored_session.hpp>

#include "coordinated_session.hpp"

namespace lockstep {

/// The outermost layer: makes the session anew where all that failed threw AbortedError (if it may), and ends
/// it where it cannot. What it throws is for the user.
class RecoverableSession {
 public:
  RecoverableSession(std::shared_ptr<SessionCreator> creator, MonitoredSessionOptions options, bool recovers);
  ~RecoverableSession();
  RecoverableSession(const RecoverableSession&) = delete;
  RecoverableSession& operator=(const RecoverableSession&) = delete;

  bool should_stop() const noexcept { return closed_ || hooked_.stopping(); }
  StepValues run(const RawSession::Step& step, const Feeds& feeds);
  void run_step_fn(const std::function<void(StepFnContext&)>& step_fn);
  void close();

  /// An exception of the program passes between two steps. Nothing can be agreed any more: the other ranks
  /// hear of it when their wait ends.
  void abandon() noexcept;

  bool closed() const noexcept { return closed_; }
  HookedSession& hooked() noexcept { return hooked_; }
  const HookedSession& hooked() const noexcept { return hooked_; }
  SessionGround& ground() noexcept { return ground_; }
  CreatedSession* created() noexcept { return session_ ? &session_->created() : nullptr; }
  Coordinator& coordinator();
  const std::string& restored_from() const noexcept { return restored_from_; }

 private:
  void make_session();
  void recover(const AgreedFailure& failure);
  void heed_raw_steps();
  void report_start(const CreatedSession& created);
  void require_running(const char* what) const;
  template <class Work>
  void again_while_aborted(Work&& work);
  [[noreturn]] void fail(const AgreedFailure& failure);
  void lose(const std::exception& error);
  [[noreturn]] void report_failure(const AgreedFailure& failure);
  void release_directory();

  std::shared_ptr<SessionCreator> creator_;
  SessionGround& ground_;
  bool recovers_;
  Seconds grace_;
  HookedSession hooked_;
  std::unique_ptr<CoordinatedSession> session_;
  std::string restored_from_;  ///< at the first creation
  int recoveries_ = 0;         ///< since the last step that was completed
  bool reported_ = false;
  bool closed_ = false;
};

}  // namespace lockstep
