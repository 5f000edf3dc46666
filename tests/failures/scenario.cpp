#include "scenario.hpp"

#include <csignal>
#include <cstdio>
#include <fstream>
#include <set>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/reader.hpp>

namespace lockstep::test {
namespace {

constexpr const char* kNewest = "ckpt-00000003.h5";

/// Steps of the whole checkpoints that were set aside on request.
std::set<std::int64_t> steps_aside(const std::filesystem::path& folder, const std::vector<Digest>& expected) {
  std::set<std::int64_t> steps;
  const auto directory = PosixFileSystem().open_directory(folder);
  for (const DirectoryEntry& entry : directory->list()) {
    if (!entry.name.starts_with("ckpt-")) continue;
    try {
      const CheckpointFile file(*directory, entry.name);
      if (file.digest() == expected.at(static_cast<std::size_t>(file.step()))) steps.insert(file.step());
    } catch (const Error&) {
      // Not whole: it does not count.
    }
  }
  return steps;
}

}  // namespace

std::vector<Scenario> scenarios() {
  std::vector<Scenario> all;
  for (const int ranks : {1, 2, 3, 4}) {
    JobOptions job{.ranks = ranks, .last_step = kLastStep};
    const auto add = [&](Scenario scenario) {
      scenario.name += fmt::format(", {} rank{}", ranks, ranks == 1 ? "" : "s");
      all.push_back(std::move(scenario));
    };
    JobOptions sharded = job;
    sharded.shard_bytes = 1;
    add({.name = "new, in shards", .job = sharded, .has_folder = false});
    sharded.max_to_keep = 1;
    add({.name = "in shards, keeping one", .job = sharded, .floor = kHeldStep});
    add({.name = "a new run", .job = job, .has_folder = false});
    add({.name = "after a kill", .job = job, .crashed = true, .floor = kHeldStep});
    add({.name = "damaged newest, torn state file", .job = job, .damaged = true, .floor = kHeldStep - 1});
    job.max_to_keep = 1;
    add({.name = "keeping one", .job = job, .floor = kHeldStep});
    job.max_to_keep = 2;
    job.fresh = true;
    add({.name = "fresh", .job = job, .aside = -1});
    all.back().aside = 0;
    job.fresh = false;
    job.restore_from = "ckpt-00000002.h5";
    add({.name = "from an older one", .job = job, .floor = 2, .aside = 3});
  }
  return all;
}

Templates::Templates(const std::filesystem::path& where)
    : good_(where / "good"), crashed_(where / "crashed") {
  SharedTraces traces;
  for (const auto& folder : {good_, crashed_}) {
    traces->reset();
    const bool kill = folder == crashed_;
    const Ended ended = in_child([&] {
      if (kill) {
        // Dies in the middle of writing the next checkpoint.
        std::snprintf(traces->faults.folder, sizeof traces->faults.folder, "%s", folder.c_str());
        traces->faults.kind = Faults::tear;
        lockstep_set_faults(&traces->faults);
      }
      return run_job({.folder = folder,
                      .last_step = kill ? kLastStep : kHeldStep,
                      .in_step =
                          [&](std::int64_t step) {
                            if (kill && step == kHeldStep) traces->faults.at = traces->faults.calls + 3;
                          }},
                     *traces);
    });
    if (ended.signal != (kill ? SIGKILL : 0) || (!kill && ended.exit_code != 0)) {
      throw std::runtime_error(fmt::format("no folder to start from: {}", traces->log));
    }
  }
}

void Templates::lay_out(const Scenario& scenario, const std::filesystem::path& folder) const {
  std::filesystem::remove_all(folder);
  if (!scenario.has_folder) return;
  std::filesystem::copy(scenario.crashed ? crashed_ : good_, folder);
  if (!scenario.damaged) return;
  std::fstream file(folder / kNewest, std::ios::in | std::ios::out | std::ios::binary);
  constexpr int kInside = 900;
  file.seekp(kInside);
  file.put('!');
  std::filesystem::resize_file(folder / "checkpoint.json", 10);
}

std::vector<std::string> planted(const Scenario& scenario) {
  return scenario.damaged ? std::vector<std::string>{kNewest} : std::vector<std::string>{};
}

std::string try_point(const Scenario& scenario, const std::filesystem::path& folder, Traces& traces,
                      const std::vector<Digest>& expected, Ended& ended, const std::function<void()>& after) {
  std::snprintf(traces.faults.folder, sizeof traces.faults.folder, "%s", folder.c_str());
  JobOptions job = scenario.job;
  job.folder = folder;
  ended = in_child([&] {
    lockstep_set_faults(&traces.faults);
    return run_job(job, traces);
  });
  if (after) after();
  if (ended.hung) return "it hung; ";
  const std::int64_t acknowledged = std::max<std::int64_t>(scenario.floor, traces.acknowledged);
  std::string problems = problems_of(folder, expected, acknowledged, planted(scenario));
  if (scenario.aside >= 0 && std::filesystem::exists(folder)) {
    const auto steps = steps_aside(folder, expected);
    for (std::int64_t step = std::max<std::int64_t>(scenario.aside, kHeldStep - 1); step <= kHeldStep;
         ++step) {
      if (!steps.contains(step)) problems += fmt::format("step {}, set aside on request, is gone; ", step);
    }
  }

  // The next job goes on to the same end.
  static SharedTraces next;
  next->reset();
  job.fresh = false;
  job.restore_from.clear();
  if (const int code = run_job(job, *next); code != 0) {
    return problems + fmt::format("the next job ended with {}: {}", code, next->log);
  }
  if (next->restored < acknowledged) {
    problems += fmt::format("the next job went on from {} although {} was acknowledged; ",
                            next->restored.load(), acknowledged);
  }
  if (expected.back().hex() != next->digest) problems += "the next job came to another result; ";
  problems += problems_of(folder, expected, kLastStep);
  problems += leftovers_in(folder);
  if (scenario.aside < 0) problems += superseded_in(folder);
  return problems;
}

Sweep::Sweep(int worker, int workers, const std::filesystem::path& scratch)
    : Sweep(
          worker, workers, scratch, scratch / "run", [] {}, [] {}) {}

Sweep::Sweep(int worker, int workers, const std::filesystem::path& scratch, std::filesystem::path folder,
             std::function<void()> before, std::function<void()> after)
    : worker_(worker),
      workers_(workers),
      templates_(scratch),
      folder_(std::move(folder)),
      before_(std::move(before)),
      after_(std::move(after)) {}

std::string Sweep::rehearse(const Scenario& scenario) {
  std::string initials;
  --totals.points;
  try_with(
      scenario, [](Faults&) {},
      [&](const Traces& traces, const Ended& ended) {
        initials.assign(traces.faults.initials, static_cast<std::size_t>(traces.faults.calls));
        return ended.exit_code == 0 ? "" : "undisturbed, it failed; ";
      });
  return initials;
}

void Sweep::try_with(const Scenario& scenario, const std::function<void(Faults&)>& arm,
                     const std::function<std::string(const Traces&, const Ended&)>& judge) {
  templates_.lay_out(scenario, folder_);
  before_();
  traces_->reset();
  arm(traces_->faults);
  Ended ended;
  std::string problems = try_point(scenario, folder_, *traces_, expected_, ended, after_);
  problems += judge(*traces_, ended);
  ++totals.points;
  if (problems.empty()) return;
  ++totals.problems;
  told_problem();
  const Faults& faults = traces_->faults;
  std::printf(
      "%s; %s (kind %d, at %ld, code %d, forever %d), %ld calls, exit code %d, signal %d: %s\n  log: %s\n",
      scenario.name.c_str(), faults.struck ? faults.what : "no call failed", faults.kind, faults.at,
      faults.code, static_cast<int>(faults.forever), faults.calls.load(), ended.exit_code, ended.signal,
      problems.c_str(), traces_->log);
}

}  // namespace lockstep::test
