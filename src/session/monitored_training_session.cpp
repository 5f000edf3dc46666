#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/checkpoint_saver.hpp>
#include <lockstep/hooks/step_counter.hpp>
#include <lockstep/hooks/summary_saver.hpp>
#include <lockstep/session/monitored_training_session.hpp>

#include "session_ground.hpp"

namespace lockstep {
namespace {

template <class T>
std::optional<T> interval(std::optional<T> value, std::string_view name) {
  if (value && !(*value >= 0)) {
    throw UsageError(fmt::format("{} is {}; give an interval above 0, or 0 for none", name, *value));
  }
  return value && *value == 0 ? std::nullopt : value;
}

/// The default hooks and the user's.
std::vector<std::shared_ptr<SessionRunHook>> make_hooks(const MonitoredTrainingSessionOptions& options) {
  const auto save_secs = interval(options.save_checkpoint_secs, "save_checkpoint_secs");
  const auto save_steps = interval(options.save_checkpoint_steps, "save_checkpoint_steps");
  const auto summary_steps = interval(options.save_summaries_steps, "save_summaries_steps");
  const auto summary_secs = interval(options.save_summaries_secs, "save_summaries_secs");
  const auto count_steps = interval(options.log_step_count_steps, "log_step_count_steps");
  const bool has_summaries = !options.summary_dir.empty() || !options.checkpoint_dir.empty();
  std::vector<std::shared_ptr<SessionRunHook>> hooks;
  if (has_summaries && count_steps) hooks.push_back(std::make_shared<StepCounterHook>(count_steps));
  if (has_summaries && (summary_steps || summary_secs)) {
    hooks.push_back(
        std::make_shared<SummarySaverHook>(summary_steps, summary_secs, options.scaffold.summary));
  }
  if (!options.checkpoint_dir.empty() && (save_secs || save_steps)) {
    hooks.push_back(std::make_shared<CheckpointSaverHook>(CheckpointSaverHook::Options{
        .save_secs = save_secs,
        .save_steps = save_steps,
        .stop_on_failure = options.config.stop_on_save_failure,
        .metric = options.scaffold.saver.keep_best ? options.scaffold.saver.keep_best->metric : ""}));
  }
  hooks.insert(hooks.end(), options.hooks.begin(), options.hooks.end());
  return hooks;
}

std::shared_ptr<SessionCreator> make_creator(Communicator comm, State& state,
                                             const MonitoredTrainingSessionOptions& options) {
  return make_session_creator(std::move(comm), state,
                              {.checkpoint_dir = options.checkpoint_dir,
                               .summary_dir = options.summary_dir,
                               .scaffold = options.scaffold,
                               .max_wait_secs = options.max_wait_secs,
                               .config = options.config});
}

/// Mistakes of one rank are told to all, so all meet first.
MonitoredSessionOptions session_options(SessionCreator& creator,
                                        const MonitoredTrainingSessionOptions& options) {
  MonitoredSessionOptions result{.hooks = {},
                                 .chief_only_hooks = options.chief_only_hooks,
                                 .stop_grace_period_secs = options.stop_grace_period_secs};
  SessionGround& ground = creator.ground();
  ground.meet();
  try {
    ground.together("", [&] { result.hooks = make_hooks(options); });
  } catch (const AgreedFailure& failure) {
    std::rethrow_exception(failure.error);
  }
  return result;
}

}  // namespace

MonitoredTrainingSession::MonitoredTrainingSession(Communicator comm, State& state,
                                                   MonitoredTrainingSessionOptions options)
    : MonitoredTrainingSession(make_creator(std::move(comm), state, options), options) {}

MonitoredTrainingSession::MonitoredTrainingSession(const std::shared_ptr<SessionCreator>& creator,
                                                   const MonitoredTrainingSessionOptions& options)
    : MonitoredSession(creator, session_options(*creator, options)) {}

}  // namespace lockstep
