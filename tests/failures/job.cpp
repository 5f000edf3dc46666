#include "job.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <set>
#include <stdexcept>
#include <string_view>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <malloc.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/shards.hpp>
#include <lockstep/checkpoint/trailer.hpp>
#include <lockstep/mpi/simulated_world.hpp>
#include <lockstep/session/monitored_training_session.hpp>

namespace lockstep::test {
namespace {

constexpr std::int64_t kElements = 40;

/// Notes what the user would have been told.
class Listener final : public Log::Sink {
 public:
  explicit Listener(Traces& traces) : traces_(traces) {}
  void write(LogLevel level, std::string_view message) override {
    const auto number_after = [&](std::string_view mark) {
      return std::strtol(message.data() + message.find(mark) + mark.size(), nullptr, 10);
    };
    if (message.starts_with("saved checkpoint")) {
      traces_.acknowledged = std::max(traces_.acknowledged.load(), number_after("(step "));
    }
    if (message.starts_with("restored checkpoint")) traces_.restored = number_after("(step ");
    if (message.find(" was not saved: ") != std::string_view::npos) ++traces_.failed_saves;
    if (level == LogLevel::info) return;
    traces_.complained = true;
    const std::size_t used = std::strlen(traces_.log);
    const std::size_t count = std::min(message.size(), sizeof traces_.log - used - 2);
    std::memcpy(traces_.log + used, message.data(), count);
    traces_.log[used + count] = '\n';
    traces_.log[used + count + 1] = '\0';
  }

 private:
  Traces& traces_;
};

/// What one rank trains: each step takes 0.25 from every weight and adds the step to a slot.
struct Model {
  Model() {
    state.parameter("dense/w", {kElements});
    state.parameter("dense/b", {3});
    state.slot("velocity");
    state.attach("counter", std::span(counter), {2});
    state.setting("model", "failures");
  }

  StepValues step(StepContext& context) {
    std::vector<float> gradients(context.state().parameter_elements(), 0.0F);
    std::ranges::fill(std::span(gradients).first(kElements), 1.0F);
    StepValues values{{"loss", 1.0}};
    const auto sum = context.reduce(gradients, values);
    const auto parameters = context.state().parameters();
    const auto velocity = context.state().slot_values("velocity");
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      parameters[i] -= 0.25F * sum[i] / static_cast<float>(context.ranks());
      velocity[i] += static_cast<float>(context.number());
    }
    counter[0] += context.number();
    return values;
  }

  std::vector<std::int64_t> counter = {0, 0};
  State state;
};

MonitoredTrainingSessionOptions session_options(const JobOptions& job, Traces& traces) {
  MonitoredTrainingSessionOptions options;
  options.checkpoint_dir = job.folder;
  options.scaffold.init_fn = [](State& fresh) { std::ranges::fill(fresh.parameters(), 1.0F); };
  options.scaffold.saver.max_to_keep = job.max_to_keep;
  options.scaffold.saver.shard_bytes = job.shard_bytes;
  options.save_checkpoint_secs = std::nullopt;
  options.save_checkpoint_steps = 1;
  options.save_summaries_steps = 2;
  options.log_step_count_steps = std::nullopt;
  options.config.fresh = job.fresh;
  options.config.restore_from = job.restore_from;
  options.config.stop_on_save_failure = job.stop_on_save_failure;
  // Nothing happens beside the main thread, so that the calls of a job are the same in every run of it.
  options.config.executor = std::make_shared<InlineExecutor>();
  options.config.clock = std::make_shared<FakeClock>();
  if (job.clock) options.config.clock = job.clock;
  if (job.identity) options.config.process = job.identity;
  options.config.log = Log(std::make_shared<Listener>(traces));
  return options;
}

/// The content of a whole checkpoint. HDF5 looks at each image once: equal images have equal contents.
Digest content_of(Directory& directory, const std::string& name, std::int64_t step) {
  static std::map<std::string, Digest> known;
  const VerifiedImage image = read_verified(*directory.open(name), name, CheckpointFile::kDefaultLimit);
  if (image.trailer.step != step) throw DataError(name + " holds another step");
  // A manifest says nothing of what its shards hold now.
  if (!shards_of(directory, name).empty()) return CheckpointFile(directory, name).digest();
  const std::string key = digest_of(image.image()).hex();
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  return known[key] = CheckpointFile(directory, name).digest();
}

}  // namespace

void Traces::reset() {
  this->~Traces();
  new (this) Traces();
}

SharedTraces::SharedTraces() {
  void* memory = ::mmap(nullptr, sizeof(Traces), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no shared memory");
  traces_ = new (memory) Traces();
}

SharedTraces::~SharedTraces() {
  ::munmap(traces_, sizeof(Traces));
}

int run_job(const JobOptions& job, Traces& traces) {
  try {
    SimulatedWorld{.ranks = job.ranks, .seed = 7}.run([&](const Communicator& world) {
      Model model;
      MonitoredTrainingSession session(world, model.state, session_options(job, traces));
      while (!session.should_stop() && session.global_step() < job.last_step) {
        session.run([&](StepContext& context) {
          if (world.is_chief() && job.in_step) job.in_step(context.number());
          return model.step(context);
        });
      }
      session.close();
      if (world.is_chief()) {
        std::snprintf(traces.digest, sizeof traces.digest, "%s",
                      content_digest(model.state.entries()).hex().c_str());
      }
    });
    return 0;
  } catch (const std::exception& error) {
    Listener(traces).write(LogLevel::error, error.what());
    return static_cast<int>(exit_code_of(error));
  }
}

std::vector<Digest> expected_digests(std::int64_t last_step) {
  std::vector<Digest> digests;
  SharedTraces traces;
  SimulatedWorld{.ranks = 1}.run([&](const Communicator& world) {
    Model model;
    MonitoredTrainingSession session(world, model.state, session_options({}, *traces));
    for (std::int64_t step = 0;; ++step) {
      digests.push_back(content_digest(model.state.entries()));
      if (step == last_step) break;
      session.run([&](StepContext& context) { return model.step(context); });
    }
    session.close();
  });
  return digests;
}

Ended in_child(const std::function<int()>& work, int limit_seconds) {
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("no more processes");
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    // The default action of SIGALRM ends it.
    ::alarm(static_cast<unsigned>(limit_seconds));
    ::_exit(work());
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  Ended ended;
  if (WIFEXITED(status)) ended.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) ended.signal = WTERMSIG(status);
  ended.hung = ended.signal == SIGALRM;
  return ended;
}

std::string problems_of(const std::filesystem::path& folder, const std::vector<Digest>& expected,
                        std::int64_t acknowledged, const std::vector<std::string>& planted) {
  std::string problems;
  std::int64_t newest = -1;
  std::unique_ptr<Directory> directory;
  try {
    directory = PosixFileSystem().open_directory(folder);
  } catch (const FileError& error) {
    if (acknowledged < 0 && error.code() == ENOENT) return "";
    throw;
  }
  for (const DirectoryEntry& entry : directory->list()) {
    const auto name = parse_file_name(kDefaultBasename, entry.name);
    if (!name) continue;
    try {
      const auto step = static_cast<std::size_t>(name->step);
      if (step >= expected.size() || content_of(*directory, entry.name, name->step) != expected[step]) {
        problems += fmt::format("{} holds another state than that of its step; ", entry.name);
      } else {
        newest = std::max(newest, name->step);
      }
    } catch (const Error& error) {
      if (std::ranges::find(planted, entry.name) != planted.end()) continue;
      problems += fmt::format("a file has the name of a checkpoint and is none: {}; ", error.what());
    }
  }
  if (newest < acknowledged) {
    problems +=
        fmt::format("step {} was acknowledged, the newest that is there is {}; ", acknowledged, newest);
  }
  return problems;
}

std::string leftovers_in(const std::filesystem::path& folder) {
  std::string left;
  const auto directory = PosixFileSystem().open_directory(folder);
  std::set<std::string> named;
  for (const DirectoryEntry& entry : directory->list()) {
    if (!entry.name.starts_with("ckpt-")) continue;
    try {
      for (const std::string& shard : shards_of(*directory, entry.name)) named.insert(shard);
    } catch (const Error&) {
      // Set aside as damaged.
    }
  }
  for (const DirectoryEntry& entry : directory->list()) {
    if (is_shard_name(kDefaultBasename, entry.name) && !named.contains(entry.name)) {
      left += entry.name + " belongs to no checkpoint; ";
    }
    if (entry.name.find(".tmp") == std::string::npos && !entry.name.starts_with(".lock")) continue;
    left += entry.name + " is left behind; ";
  }
  return left;
}

std::string superseded_in(const std::filesystem::path& folder) {
  std::string found;
  for (const DirectoryEntry& entry : PosixFileSystem().open_directory(folder)->list()) {
    if (entry.name.find(".superseded-") != std::string::npos) found += entry.name + " is there; ";
  }
  return found;
}

std::filesystem::path make_scratch() {
  const std::filesystem::path parent = ::access("/dev/shm", W_OK) == 0
                                           ? std::filesystem::path("/dev/shm")
                                           : std::filesystem::temp_directory_path();
  std::string name = (parent / "lockstep-failures-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
  return name;
}

Totals on_all_cores(
    const std::function<Totals(int worker, int workers, const std::filesystem::path&)>& work) {
  const int workers = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  auto* memory = static_cast<Totals*>(::mmap(nullptr, sizeof(Totals) * static_cast<std::size_t>(workers),
                                             PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  std::vector<pid_t> children;
  for (int worker = 0; worker < workers; ++worker) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      int code = 0;
      // Memory is kept rather than given back: what a fork copies is then touched once.
      ::mallopt(M_MMAP_THRESHOLD, 64 << 20);
      ::mallopt(M_TRIM_THRESHOLD, 256 << 20);
      const auto scratch = make_scratch();
      try {
        memory[worker] = work(worker, workers, scratch);
      } catch (const std::exception& error) {
        std::printf("worker %d: %s\n", worker, error.what());
        code = 1;
      }
      std::filesystem::remove_all(scratch);
      std::fflush(stdout);
      ::_exit(code);
    }
    children.push_back(child);
  }
  Totals all;
  for (int worker = 0; worker < workers; ++worker) {
    int status = 0;
    ::waitpid(children[static_cast<std::size_t>(worker)], &status, 0);
    if (status != 0) ++all.problems;
    all.points += memory[worker].points;
    all.problems += memory[worker].problems;
    for (std::size_t i = 0; i < std::size(all.other); ++i) all.other[i] += memory[worker].other[i];
  }
  ::munmap(memory, sizeof(Totals) * static_cast<std::size_t>(workers));
  return all;
}

int report(const Totals& totals, long at_least) {
  if (totals.points < at_least) std::printf("there should be at least %ld cases\n", at_least);
  std::printf("%ld cases, %ld problems\n", totals.points, totals.problems);
  return totals.problems == 0 && totals.points >= at_least ? EXIT_SUCCESS : EXIT_FAILURE;
}

namespace {

std::atomic<bool>* first_told = nullptr;  // in memory that processes share; null: all are wanted

}  // namespace

void may_end_at_first(int argc, char** argv) {
  const std::vector<std::string_view> words(argv, argv + argc);
  if (std::ranges::find(words, "--first") == words.end()) return;
  void* memory =
      ::mmap(nullptr, sizeof(std::atomic<bool>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no shared memory");
  first_told = new (memory) std::atomic<bool>(false);
}

void told_problem() noexcept {
  if (first_told != nullptr) first_told->store(true);
}

bool is_enough() noexcept {
  return first_told != nullptr && first_told->load();
}

bool is_full(int argc, char** argv) {
  const std::vector<std::string_view> words(argv, argv + argc);
  const auto found = std::ranges::find(words, "--size");
  return found != words.end() && found + 1 != words.end() && found[1] == "full";
}

}  // namespace lockstep::test
