#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <lockstep/hooks/step_trace.hpp>
#include <lockstep/reduce/topology.hpp>
#include <lockstep/session/session_creator.hpp>

#include "agreement.hpp"
#include "failure.hpp"
#include "kept_memory.hpp"
#include "run_directory.hpp"

namespace lockstep {

/// What a session stands on, through all its recoveries.
struct SessionGround {
  SessionGround(Communicator communicator, State& its_state, SessionCreatorOptions its_options);
  ~SessionGround();
  SessionGround(const SessionGround&) = delete;
  SessionGround& operator=(const SessionGround&) = delete;

  /// The first wait of all, once: it names the ranks that have not come. Collective.
  void meet();

  /// Compares what every session compares, and `more`, which must be the same on all ranks. Collective.
  void compare(std::vector<Statement> more);

  /// Runs a part of the creation that may fail on one rank alone; throws AgreedFailure on all if it does.
  void together(std::string_view phase, const std::function<void()>& work);

  /// Runs a part of the creation on the chief; throws AgreedFailure on all ranks if it fails.
  void on_chief(std::string_view what, std::string_view phase, const std::function<void()>& work);

  void write_status(const char* status, std::optional<ExitCode> code, const std::string& reason) const;

  /// The session has failed: its ranks may part at different places. Local.
  void part() const noexcept;

  Communicator comm;
  Communicator start;  ///< the same, with the patience that the creation has
  State& state;
  SessionCreatorOptions options;
  SessionConfig& config;
  Log log;  ///< speaks on the chief
  Seconds started;
  std::optional<Topology> topology;
  std::unique_ptr<RunDirectory> directory;  ///< null on ranks that are not the chief, and without one
  std::shared_ptr<KeptMemory> kept;         ///< null: nothing is kept for a session after this one
  std::optional<std::int64_t> carried;      ///< the step of a session before this one, whose values it has
  StepTrace trace;
  bool owns_directory = false;  ///< the same on all ranks
  bool met = false;
};

/// The same ranks, waiting for at most so many seconds; 0: no limit.
Communicator patient(const Communicator& comm, double seconds);

}  // namespace lockstep
