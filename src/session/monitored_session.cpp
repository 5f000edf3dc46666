#include <exception>
#include <utility>

#include <lockstep/base/error.hpp>
#include <lockstep/session/monitored_session.hpp>

#include "recoverable_session.hpp"

namespace lockstep {
namespace {

std::shared_ptr<SessionCreator> require(std::shared_ptr<SessionCreator> creator) {
  if (!creator) throw UsageError("the session creator is null; see make_session_creator");
  return creator;
}

}  // namespace

MonitoredSession::MonitoredSession(std::shared_ptr<SessionCreator> creator, MonitoredSessionOptions options)
    : MonitoredSession(std::move(creator), std::move(options), true) {}

MonitoredSession::MonitoredSession(std::shared_ptr<SessionCreator> creator, MonitoredSessionOptions options,
                                   bool recovers)
    : session_(
          std::make_unique<RecoverableSession>(require(std::move(creator)), std::move(options), recovers)) {}

MonitoredSession::~MonitoredSession() {
  if (session_->closed()) return;
  if (std::uncaught_exceptions() > 0) {
    session_->abandon();
    return;
  }
  try {
    session_->close();
  } catch (const std::exception& error) {
    session_->ground().log.error(std::string("while closing the session: ") + error.what());
  } catch (...) {
    session_->ground().log.error("while closing the session: an exception of an unknown type");
  }
}

bool MonitoredSession::should_stop() const noexcept {
  return session_->should_stop();
}

StepValues MonitoredSession::run(const Step& step, const Feeds& feeds) {
  return session_->run(step, feeds);
}

void MonitoredSession::run_step_fn(const std::function<void(StepFnContext&)>& step_fn) {
  session_->run_step_fn(step_fn);
}

void MonitoredSession::train(const Step& step) {
  while (!should_stop()) run(step);
  close();
}

void MonitoredSession::close() {
  session_->close();
}

void MonitoredSession::request_stop(std::string_view reason) {
  session_->hooked().request_stop(reason);
}

void MonitoredSession::save_now() {
  session_->hooked().save_now();
}

SummaryWriter& MonitoredSession::summary() noexcept {
  return session_->hooked().summary();
}

Coordinator& MonitoredSession::coordinator() {
  return session_->coordinator();
}

std::int64_t MonitoredSession::global_step() const noexcept {
  return session_->hooked().global_step();
}

const StopCause& MonitoredSession::stop_cause() const noexcept {
  return session_->hooked().cause();
}

const std::string& MonitoredSession::stop_reason() const noexcept {
  return session_->hooked().cause().reason;
}

bool MonitoredSession::stopped_early() const noexcept {
  return session_->hooked().cause().early;
}

const std::string& MonitoredSession::restored_from() const noexcept {
  return session_->restored_from();
}

const Reducer& MonitoredSession::reducer() const {
  const CreatedSession* created = session_->created();
  if (created == nullptr) throw UsageError("the session is closed");
  return created->reducer();
}

const Topology& MonitoredSession::topology() const noexcept {
  return *session_->ground().topology;
}

SingularMonitoredSession::SingularMonitoredSession(std::shared_ptr<SessionCreator> creator,
                                                   MonitoredSessionOptions options)
    : MonitoredSession(std::move(creator), std::move(options), false) {}

RawSession* SingularMonitoredSession::raw_session() noexcept {
  return layers().closed() ? nullptr : layers().created();
}

}  // namespace lockstep
