#pragma once

#include <filesystem>
#include <memory>

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/session/raw_session.hpp>
#include <lockstep/session/scaffold.hpp>
#include <lockstep/session/session_config.hpp>

namespace lockstep {

struct SessionGround;

struct SessionCreatorOptions {
  std::filesystem::path checkpoint_dir = {};  ///< empty: no restore, nowhere to save
  std::filesystem::path summary_dir = {};     ///< empty: checkpoint_dir
  Scaffold scaffold = {};
  double max_wait_secs = 1800;  ///< how long a rank waits for the others and for the chief; 0: no limit
  SessionConfig config = {};
};

/// Makes sessions, again and again where a session recovers: initializes or restores the state, and brings
/// all ranks to the same values (tf.train.SessionCreator). Every rank has one, with the same options: a
/// ChiefSessionCreator on rank 0 and a WorkerSessionCreator on the others, or what make_session_creator
/// gives. `state` must outlive it. One thread uses it.
class SessionCreator {
 public:
  virtual ~SessionCreator();
  SessionCreator(const SessionCreator&) = delete;
  SessionCreator& operator=(const SessionCreator&) = delete;

  /// In this order: the checkpoint directory is locked, the scaffold finalized and the state frozen (the
  /// first time); the newest good checkpoint is restored, or else `init` and `init_fn` run on the chief; all
  /// ranks get the values; then `ready_for_local_init`, `local_init` and `ready` on every rank. A wait for
  /// the chief lasts at most max_wait_secs.
  ///
  /// Collective; throws on all ranks: what the functions of the scaffold throw; TrainingError when they leave
  /// something that is not ready; and as MonitoredTrainingSession. One that is derived may do things before
  /// and after, on all ranks; it may throw before on all ranks or none, and after also on one, which then
  /// all do; but no DeadlineExceeded of its own, which means that a rank is missing: the others would wait
  /// for max_wait_secs. It lets pass what this throws.
  virtual std::unique_ptr<RawSession> create_session();

  SessionGround& ground() noexcept { return *ground_; }  ///< Session only.

 protected:
  enum class Role { chief, worker };
  SessionCreator(Role role, Communicator comm, State& state, SessionCreatorOptions options);

 private:
  Role role_;
  std::unique_ptr<SessionGround> ground_;
  bool created_ = false;
};

/// The chief's. On another rank its use is an error on all ranks.
class ChiefSessionCreator : public SessionCreator {
 public:
  ChiefSessionCreator(Communicator comm, State& state, SessionCreatorOptions options = {});
};

/// A worker's: waits for the chief. On rank 0 its use is an error on all ranks.
class WorkerSessionCreator : public SessionCreator {
 public:
  WorkerSessionCreator(Communicator comm, State& state, SessionCreatorOptions options = {});
};

/// The one of the two that belongs on this rank. Local.
std::shared_ptr<SessionCreator> make_session_creator(Communicator comm, State& state,
                                                     SessionCreatorOptions options = {});

}  // namespace lockstep
