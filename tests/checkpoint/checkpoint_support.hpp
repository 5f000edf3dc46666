#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/checkpoint/restore.hpp>
#include <lockstep/checkpoint/saver.hpp>
#include <lockstep/state/state.hpp>

#include "memory_directory.hpp"

namespace lockstep::test {

/// Keeps every message.
class Messages final : public Log::Sink {
 public:
  void write(LogLevel, std::string_view message) override { lines.emplace_back(message); }

  bool contain(std::string_view text) const {
    for (const std::string& line : lines) {
      if (line.find(text) != std::string::npos) return true;
    }
    return false;
  }

  std::vector<std::string> lines;
};

/// A process among others that a test makes up.
class FakeIdentity : public ProcessIdentity {
 public:
  /// What all processes of a test know: who lives, and the last nonce.
  struct World {
    std::map<std::pair<std::string, std::int64_t>, std::uint64_t> started;
    std::uint64_t nonce = 1;
  };

  FakeIdentity(std::shared_ptr<World> world, std::string host, std::int64_t pid, std::string job = "")
      : world_(std::move(world)), host_(std::move(host)), pid_(pid), job_(std::move(job)) {
    world_->started[{host_, pid_}] = 1000 + ++world_->nonce;
  }
  FakeIdentity() : FakeIdentity(std::make_shared<World>(), "here", 100) {}

  void die() { world_->started.erase({host_, pid_}); }

  std::string host() const override { return host_; }
  std::string boot_id() const override { return "boot-of-" + host_; }
  std::int64_t pid() const override { return pid_; }
  std::optional<std::uint64_t> start_time(std::int64_t pid) const override {
    const auto found = world_->started.find({host_, pid});
    return found == world_->started.end() ? std::nullopt : std::optional(found->second);
  }
  std::string job_id() const override { return job_; }
  std::uint64_t nonce() override { return ++world_->nonce; }

 private:
  std::shared_ptr<World> world_;
  std::string host_;
  std::int64_t pid_;
  std::string job_;
};

/// A small state with every kind of entry, whose values are a function of the step.
struct SmallModel {
  explicit SmallModel(std::int64_t outputs = 3, const std::string& seed = "7") {
    state.parameter("dense/weight", {4, outputs});
    state.parameter("dense/bias", {outputs});
    state.buffer("norm/mean", {4});
    state.slot("velocity");
    state.attach("user/doubles", std::span(doubles), {5});
    state.setting("seed", seed);
    state.setting("model", "small");
    PlainAllocator allocator;
    state.freeze(allocator);
  }

  void set(std::int64_t step) {
    const auto fill = [&](std::span<float> values, float base) {
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = base + static_cast<float>(i);
    };
    for (const Tensor& tensor : state.parameter_tensors()) {
      fill(tensor.values(), static_cast<float>(step) + 0.5F);
      fill(tensor.in(state.slot_values("velocity")), static_cast<float>(step) + 0.25F);
    }
    for (const Tensor& tensor : state.buffer_tensors()) fill(tensor.values(), static_cast<float>(step));
    for (double& value : doubles) value = static_cast<double>(step) / 3;
    state.set_global_step(step);
  }

  Digest digest() const { return content_digest(state.entries()); }

  /// The digest that it has at a step.
  static Digest digest_at(std::int64_t step) {
    SmallModel model;
    model.set(step);
    return model.digest();
  }

  std::vector<double> doubles = std::vector<double>(5);
  State state;
};

/// Everything that one process has: saver, clock and log, on a directory that may outlive it.
struct Job {
  explicit Job(std::shared_ptr<Directory> where, SaverOptions saver_options = {}, std::uint64_t job_token = 0)
      : directory(std::move(where)), options(std::move(saver_options)), token(job_token) {}

  Saver& saver() {
    if (!saver_) {
      saver_ = std::make_unique<Saver>(directory, model.state.entries(), options, clock, executor, log, token,
                                       identity);
    }
    return *saver_;
  }

  /// Saves a step and returns how that ended.
  SaveResult save(std::int64_t step) {
    model.set(step);
    saver().start(step);
    auto result = saver().take_result();
    return result ? *result : SaveResult{};
  }

  /// As `save`, while the lock names this job's token and no living process.
  SaveResult save_as_owner(std::int64_t step) {
    const std::string lock =
        R"({"host":"gone","boot_id":"b","pid":1,"start_time":1,"job":"","restarts":0,"since":0,"token":)" +
        std::to_string(token) + R"(,"nonce":"n"})";
    directory->create(".lock")->write(std::as_bytes(std::span(lock)));
    SaveResult result = save(step);
    directory->remove(".lock");
    return result;
  }

  std::optional<Restored> restore(RestoreOptions restore_options = {}) {
    restore_options.log = log;
    restore_options.basename = options.basename;
    return restore_latest(Communicator::self(), directory.get(), model.state, restore_options);
  }

  std::shared_ptr<Directory> directory;
  SaverOptions options;
  std::uint64_t token;
  SmallModel model;
  FakeClock clock;
  InlineExecutor executor;
  std::shared_ptr<Messages> messages = std::make_shared<Messages>();
  Log log{messages};
  FakeIdentity identity;

 private:
  std::unique_ptr<Saver> saver_;
};

}  // namespace lockstep::test
