#include "job.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <span>
#include <utility>

#include <lockstep/base/random.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/reduce/reducer.hpp>
#include <lockstep/session/monitored_training_session.hpp>

namespace lockstep::simulated {
namespace {

constexpr std::uint64_t kSeed = 20261123;

/// Sums of these depend on their order, and on the parameters before.
void make_gradient(std::int64_t step, std::int64_t micro_batch, std::span<const float> parameters,
                   std::span<float> gradient) {
  Random(kSeed, Purpose::test, static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(micro_batch))
      .fill_uniform(gradient);
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    gradient[i] = (gradient[i] - 0.5F) * 0.37F + 0.01F * parameters[i];
  }
}

/// Waits of each step; those of a step are in the next one's tally.
class WaitHook final : public SessionRunHook {
 public:
  std::string_view name() const override { return "waits"; }
  void after_run(RunContext& context, const RunValues& values) override {
    static_cast<void>(context);
    // The first step comes late.
    constexpr int kLeftOut = 2;
    if (++calls_ <= kLeftOut || values.tally().wait_min_rank() == Tally::kNobody) return;
    ++steps;
    last += values.tally().wait_min();
  }

  std::int64_t steps = 0;
  double last = 0;

 private:
  int calls_ = 0;
};

class Job {
 public:
  Job(const JobOptions& options, const JobSeams& seams) : options_(options), seams_(seams) {
    state_.parameter("w", {static_cast<std::int64_t>(options.elements)});
    state_.slot("velocity");
    state_.setting("model", "simulated");
  }

  /// Steps up to `last`; what is measured is added to `result`.
  void run(const Communicator& world, std::int64_t last, const std::string& again, JobResult& result) {
    pass("begin" + again);
    MonitoredTrainingSessionOptions session_options;
    session_options.checkpoint_dir = options_.directory;
    session_options.save_checkpoint_secs = std::nullopt;
    session_options.save_checkpoint_steps = std::int64_t{1} << 40;  // the first and the last
    session_options.save_summaries_steps = std::nullopt;
    session_options.log_step_count_steps = std::nullopt;
    session_options.max_wait_secs = 0;
    const auto waits = std::make_shared<WaitHook>();
    session_options.hooks = {std::make_shared<StopAtStepHook>(std::nullopt, last), waits};
    session_options.config.micro_batches = options_.micro_batches;
    session_options.config.share_parameters = true;
    session_options.config.bucket_bytes = options_.bucket_bytes;
    session_options.config.ranks_per_node = options_.ranks_per_node;
    session_options.config.clock = seams_.clock;
    session_options.config.executor = seams_.executor;
    session_options.config.log = world.policy().log;
    MonitoredTrainingSession session(world, state_, session_options);
    pass("created" + again);
    const auto step = [this](StepContext& context) { return this->step(context); };
    session.run(step);
    pass("first step" + again);
    parts_ = {};
    const auto waited = [&] {
      const WaitSummary summary = session.reducer().waits().summary();
      return summary.mean * static_cast<double>(summary.steps);
    };
    const double waited_before = waited();
    const Seconds start = seams_.clock->now();
    const std::int64_t before = session.global_step();
    while (!session.should_stop()) session.run(step);
    seconds_ += (seams_.clock->now() - start).count();
    steps_ += session.global_step() - before;
    pass("steps" + again);
    const auto mean = [](double sum, std::int64_t count) {
      return count > 0 ? sum / static_cast<double>(count) : 0;
    };
    const std::int64_t steps = session.global_step() - before;
    result.parts = {.begin = mean(parts_.begin, steps),
                    .compute = mean(parts_.compute, steps),
                    .reduce = mean(parts_.reduce, steps),
                    .finish = mean(parts_.finish, steps),
                    .wait = mean(waited() - waited_before, steps),
                    .wait_last = mean(waits->last, waits->steps)};
    result.reducer = session.reducer().describe();
    session.close();
    pass("closed" + again);
    result.step_seconds = steps_ > 0 ? seconds_ / static_cast<double>(steps_) : 0;
  }

  std::string digest() const { return state_.parameters_digest().hex(); }

 private:
  void pass(const std::string& phase) { seams_.passed(phase.c_str()); }

  StepValues step(StepContext& context) {
    const auto owned = context.micro_batches();
    const std::span<const float> parameters = context.state().parameters();
    Seconds at = seams_.clock->now();
    const auto spent = [&](double& part) {
      const Seconds now = seams_.clock->now();
      part += (now - std::exchange(at, now)).count();
    };
    for (auto m = owned.first; m < owned.last; ++m) {
      const auto gradients = context.begin_micro_batch();
      spent(parts_.begin);
      const Seconds start = seams_.processor_time();
      if (options_.digest) {
        make_gradient(context.number(), m, parameters.first(options_.elements),
                      gradients.first(options_.elements));
      } else {
        std::ranges::fill(gradients, 0.0F);
      }
      const double seconds = options_.micro_batch_seconds;
      seams_.charge(seconds < 0 ? seams_.processor_time() - start
                                : Seconds{seconds * late(context.number(), m)});
      spent(parts_.compute);
      context.end_micro_batch();
    }
    context.reduce_micro_batches();
    spent(parts_.reduce);
    const auto sum = context.sum();
    const auto velocity = context.state().slot_values("velocity");
    const ElementRange mine = context.slice();
    const auto scale = 1.0F / static_cast<float>(context.micro_batches_in_step());
    for (std::size_t i = mine.first; i < std::min(mine.last, options_.elements); ++i) {
      velocity[i] = 0.9F * velocity[i] + scale * sum[i];
      context.state().parameters()[i] -= 0.1F * velocity[i];
    }
    at = seams_.clock->now();
    context.finish();
    spent(parts_.finish);
    return {};
  }

  /// How long a micro-batch takes, as a share of its time.
  double late(std::int64_t step, std::int64_t micro_batch) const {
    if (options_.jitter == 0) return 1;
    const Random random(kSeed + 1, Purpose::test, static_cast<std::uint32_t>(step),
                        static_cast<std::uint32_t>(micro_batch));
    return std::max(0.0, 1 + options_.jitter * static_cast<double>(random.normal(0)));
  }

  const JobOptions& options_;
  const JobSeams& seams_;
  State state_;
  double seconds_ = 0;
  std::int64_t steps_ = 0;
  JobParts parts_;  ///< sums since the first step of the session
};

}  // namespace

JobResult run_job(const Communicator& world, const JobOptions& options, const JobSeams& seams) {
  JobResult result;
  {
    Job job(options, seams);
    job.run(world, options.directory.empty() ? options.steps : options.steps / 2, "", result);
    if (options.directory.empty()) result.digest = job.digest();
  }
  if (!options.directory.empty()) {
    // A launch of its own, as far as the state is concerned.
    Job job(options, seams);
    job.run(world, options.steps, " again", result);
    result.digest = job.digest();
  }
  return result;
}

int parse_word(int count, char** words, JobOptions& options) {
  const std::string word = words[0];
  if (word == "--zeros") {
    options.digest = false;
    return 1;
  }
  if (count < 2) return 0;
  const char* const value = words[1];
  if (word == "--elements") {
    options.elements = std::strtoull(value, nullptr, 10);
  } else if (word == "--micro_batches") {
    options.micro_batches = std::strtoll(value, nullptr, 10);
  } else if (word == "--steps") {
    options.steps = std::strtoll(value, nullptr, 10);
  } else if (word == "--micro_batch_us") {
    options.micro_batch_seconds =
        std::strcmp(value, "measured") == 0 ? -1 : std::strtod(value, nullptr) * 1e-6;
  } else if (word == "--jitter") {
    options.jitter = std::strtod(value, nullptr);
  } else if (word == "--directory") {
    options.directory = value;
  } else if (word == "--bucket_bytes") {
    options.bucket_bytes = std::strtoull(value, nullptr, 10);
  } else if (word == "--ranks_per_node") {
    options.ranks_per_node = static_cast<int>(std::strtol(value, nullptr, 10));
  } else {
    return 0;
  }
  return 2;
}

}  // namespace lockstep::simulated
