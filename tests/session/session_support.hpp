#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <stdlib.h>

#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/status_file.hpp>
#include <lockstep/session/keepsake.hpp>
#include <lockstep/session/monitored_training_session.hpp>

#include "../hooks/summary_support.hpp"

namespace lockstep::test {

using Steps = std::vector<std::int64_t>;

/// Keeps every message.
class Messages final : public Log::Sink {
 public:
  void write(LogLevel, std::string_view message) override { lines.emplace_back(message); }
  bool contain(std::string_view text) const {
    return std::ranges::any_of(lines,
                               [&](const std::string& line) { return line.find(text) != std::string::npos; });
  }
  std::vector<std::string> lines;
};

/// An empty folder that all ranks know and the chief removes. Collective.
class SharedFolder {
 public:
  explicit SharedFolder(const Communicator& world) : is_chief_(world.is_chief()) {
    std::string name = (scratch() / "lockstep-XXXXXX").string();
    if (is_chief_ && ::mkdtemp(name.data()) == nullptr) name.clear();
    path = world.broadcast_text(name);
  }
  ~SharedFolder() {
    std::error_code ignored;
    if (is_chief_) std::filesystem::remove_all(path, ignored);
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;

  /// Steps of the checkpoints; on the chief alone, after the session was closed.
  Steps saved() const {
    Steps found;
    for (const auto& entry : PosixFileSystem().open_directory(path)->list()) {
      if (const auto name = parse_file_name(kDefaultBasename, entry.name)) found.push_back(name->step);
    }
    std::ranges::sort(found);
    return found;
  }
  RunStatus status() const {
    return read_status(*PosixFileSystem().open_directory(path)).value_or(RunStatus{});
  }
  bool locked() const { return std::filesystem::exists(path / ".lock"); }

  std::filesystem::path path;

 private:
  bool is_chief_;
};

/// Writes down what the session calls, and does what a test wants in a phase.
class Recorder final : public SessionRunHook {
 public:
  using Act = std::function<void(std::string_view phase, RunContext&)>;
  explicit Recorder(Act act = {}) : act_(std::move(act)) {}

  std::string_view name() const override { return "recorder"; }
  void begin(RunContext& context) override { note("begin", context); }
  void after_create_session(RunContext& context) override { note("after_create_session", context); }
  void before_run(RunContext& context) override { note("before_run", context); }
  void after_run(RunContext& context, const RunValues& values) override {
    losses.push_back(values.values().find("loss").value_or(-1));
    note("after_run", context);
  }
  void end(RunContext& context) override { note("end", context); }
  void on_error(RunContext& context, const std::exception& error) override {
    told = error.what();
    note("on_error", context);
  }
  std::int64_t count(std::string_view phase) const { return std::ranges::count(calls, phase); }

  std::vector<std::string> calls;
  std::vector<double> losses;
  std::string told;

 private:
  void note(const char* phase, RunContext& context) {
    calls.emplace_back(phase);
    if (act_) act_(phase, context);
  }
  Act act_;
};

/// A model of one parameter tensor, one slot and some memory of the user's, and all that one rank's sessions
/// stand on. Clocks differ wildly between ranks.
struct Rank {
  explicit Rank(const Communicator& communicator, std::int64_t elements = 5)
      : world(communicator), clock(std::make_shared<FakeClock>(Seconds{1000.0 * communicator.rank() + 17})) {
    state.parameter("w", {elements});
    state.slot("velocity");
    state.attach("counters", std::span(counters), {2});
    state.setting("model", "test");
  }

  MonitoredTrainingSessionOptions options(const std::filesystem::path& folder = {}) const {
    MonitoredTrainingSessionOptions result;
    result.checkpoint_dir = folder;
    result.scaffold.init_fn = [](State& fresh) { std::ranges::fill(fresh.parameters().first(5), 1.0F); };
    result.config.clock = clock;
    result.config.executor = std::make_shared<InlineExecutor>();
    result.config.signals = signals;
    result.config.log = Log(messages);
    return result;
  }

  Communicator world;
  std::vector<std::int64_t> counters = {0, 0};
  State state;
  std::shared_ptr<FakeClock> clock;
  std::shared_ptr<FakeSignals> signals = std::make_shared<FakeSignals>();
  std::shared_ptr<Messages> messages = std::make_shared<Messages>();
};

/// A step with gradients of the user's own: each rank's gradient is 1, so that each element falls by 0.25.
inline StepValues gradient_step(StepContext& step) {
  std::vector<float> gradients(step.state().parameter_elements(), 0.0F);
  std::ranges::fill(std::span(gradients).first(5), 1.0F);
  StepValues values{{"loss", static_cast<double>(step.rank())}};
  const auto sum = step.reduce(gradients, values);
  const auto parameters = step.state().parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    parameters[i] -= 0.25F * sum[i] / static_cast<float>(step.ranks());
  }
  return values;
}

/// A step that reduces nothing.
inline StepValues plain_step(StepContext& step) {
  return {{"loss", static_cast<double>(step.number())}};
}

inline double mean_rank(const Communicator& world) {
  return (world.size() - 1) / 2.0;
}

/// What `work` throws, as "class: text"; empty when nothing.
inline std::string thrown(const std::function<void()>& work) {
  try {
    work();
  } catch (const UsageError& error) {
    return std::string("UsageError: ") + error.what();
  } catch (const DataError& error) {
    return std::string("DataError: ") + error.what();
  } catch (const TrainingError& error) {
    return std::string("TrainingError: ") + error.what();
  } catch (const IoError& error) {
    return std::string("IoError: ") + error.what();
  } catch (const EnvironmentError& error) {
    return std::string("EnvironmentError: ") + error.what();
  } catch (const DeadlineExceeded& error) {
    return std::string("DeadlineExceeded: ") + error.what();
  } catch (const std::runtime_error& error) {
    return std::string("runtime_error: ") + error.what();
  } catch (const std::exception& error) {
    return std::string("exception: ") + error.what();
  }
  return "";
}

/// Whether all ranks have the same text. Collective.
inline bool same_on_all(const Communicator& world, const std::string& text) {
  const auto texts = world.all_gather_text(text);
  return std::ranges::all_of(texts, [&](const std::string& theirs) { return theirs == text; });
}

inline bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace lockstep::test
