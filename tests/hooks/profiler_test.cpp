#include <set>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/profiler.hpp>

#include "fake_context.hpp"
#include "summary_support.hpp"

namespace lockstep {
namespace {

/// Runs some steps and returns those that were recorded; the texts of every rank are this one's.
std::vector<std::int64_t> recorded(ProfilerHook& hook, test::FakeContext& context, int steps,
                                   double seconds) {
  std::vector<std::int64_t> found;
  hook.begin(context);
  hook.after_create_session(context);
  for (int i = 0; i < steps; ++i) {
    hook.before_run(context);
    {
      const auto phase = context.trace().phase("work");
      context.time->advance(Seconds{seconds});
    }
    context.trace().meet();
    context.model.set_global_step(context.model.global_step() + 1);
    hook.after_run(context, RunValues({}, Tally(), context.global_step()));
    for (const auto& [text, deliver] : std::exchange(context.gathered, {})) {
      found.push_back(context.global_step());
      deliver({text, text});
    }
  }
  hook.end(context);
  return found;
}

nlohmann::json read_json(const std::filesystem::path& path) {
  PosixFileSystem files;
  const auto bytes = read_all(*files.open_file(path), 1 << 20);
  return nlohmann::json::parse(reinterpret_cast<const char*>(bytes.data()),
                               reinterpret_cast<const char*>(bytes.data()) + bytes.size());
}

using Steps = std::vector<std::int64_t>;

}  // namespace

// TF: ProfilerHook.test_raise_in_both_secs_and_steps
// Here either one fires.
TEST_CASE("a profile by steps and by seconds, whichever comes first") {
  const test::Folder folder;
  test::FakeContext context;
  ProfilerHook hook({.save_steps = 4, .save_secs = 5.0, .output_dir = folder.path});
  CHECK(hook.describe().starts_with("profiler every 4 steps or 5 s into "));
  CHECK(recorded(hook, context, 10, 1.0) == Steps{4, 8});
  context.time->advance(Seconds{4});
  CHECK(recorded(hook, context, 1, 1.0) == Steps{11});
}

// TF: ProfilerHook.test_raise_in_none_secs_and_steps
TEST_CASE("a profiler needs an interval above 0") {
  CHECK_THROWS_AS(ProfilerHook({}), UsageError);
  CHECK_THROWS_AS(ProfilerHook({.save_steps = 0}), UsageError);
  CHECK_THROWS_AS(ProfilerHook({.save_secs = -1.0}), UsageError);
}

// TF: ProfilerHook.test_save_secs_does_not_save_in_first_step
// TF: ProfilerHook.test_save_steps_does_not_save_in_first_step
TEST_CASE("the first step is never recorded") {
  const test::Folder folder;
  test::FakeContext by_seconds;
  ProfilerHook seconds({.save_secs = 2.0, .output_dir = folder.path});
  CHECK(recorded(seconds, by_seconds, 1, 100.0).empty());
  test::FakeContext by_steps;
  ProfilerHook steps({.save_steps = 1, .output_dir = folder.path});
  CHECK(recorded(steps, by_steps, 1, 1.0).empty());
  CHECK(recorded(steps, by_steps, 2, 1.0) == Steps{2, 3});
}

// TF: ProfilerHook.test_save_secs_saves_periodically
TEST_CASE("seconds count from the last profile, looked at before a step") {
  const test::Folder folder;
  test::FakeContext context;
  ProfilerHook hook({.save_secs = 2.0, .output_dir = folder.path});
  CHECK(recorded(hook, context, 8, 1.0) == Steps{4, 7});
}

// TF: ProfilerHook.test_save_steps_saves_periodically
TEST_CASE("with N = 2 steps 2, 4, 6 are recorded, each in a file of its own") {
  const test::Folder folder;
  test::FakeContext context;
  ProfilerHook hook({.save_steps = 2, .output_dir = folder.path / "made"});
  CHECK(recorded(hook, context, 7, 1.0) == Steps{2, 4, 6});
  std::set<std::string> names;
  for (const auto& entry : PosixFileSystem().open_directory(folder.path / "made")->list())
    names.insert(entry.name);
  CHECK(names == std::set<std::string>{"timeline-2.json", "timeline-4.json", "timeline-6.json"});
}

TEST_CASE("a timeline has a named track a rank, aligned where the ranks met") {
  const test::Folder folder;
  test::FakeContext context;
  context.time->advance(Seconds{500});
  ProfilerHook hook({.save_steps = 1, .output_dir = folder.path});
  hook.begin(context);
  context.step(hook);
  context.time->advance(Seconds{2});
  hook.before_run(context);
  hook.after_run(context, RunValues({}, Tally(), 2));
  REQUIRE(context.gathered.size() == 1);
  // The chief met the others 3 s after it was made; rank 1 was slower, by a clock of its own.
  context.gathered[0].second(
      {R"({"met": 503, "phases": [["work", -0.5, -0.25], ["work", -0.25, 0], ["odd \"name\"", 0, 1e-6]]})",
       R"({"met": 9, "phases": [["work", -2, 0.125]]})"});
  const auto timeline = read_json(folder.path / "timeline-2.json");
  std::vector<std::string> seen;
  for (const auto& event : timeline.at("traceEvents")) {
    CHECK(event.at("pid") == 1);
    std::string line = event.at("tid").dump() + " " + event.at("name").get<std::string>();
    if (event.at("ph") == "M") {
      line += " " + event.at("args").at("name").get<std::string>();
    } else {
      CHECK(event.at("ph") == "X");
      CHECK(event.at("args").at("step") == 2);
      line += " " + event.at("ts").dump() + " " + event.at("dur").dump();
    }
    seen.push_back(line);
  }
  CHECK(seen == std::vector<std::string>{"1 process_name lockstep, 2 ranks", "1 thread_name rank 0",
                                         "1 work 2500000.0 250000.0", "1 work 2750000.0 250000.0",
                                         "1 odd \"name\" 3000000.0 1.0", "2 thread_name rank 1",
                                         "2 work 1000000.0 2125000.0"});
}

// TF: ProfilerHook.test_run_metadata_saves
// Where the original puts the trace itself into the event file, ours puts what of it TensorBoard can draw.
TEST_CASE("the event file gets the seconds of the slowest rank in each phase, at the step of the profile") {
  const test::Folder folder;
  test::FakeContext context;
  context.writer = SummaryWriter(
      std::make_unique<EventWriter>(PosixFileSystem().open_directory(folder.path), *context.time, "here"),
      context.log());
  ProfilerHook hook({.save_steps = 2, .output_dir = folder.path});
  hook.begin(context);
  context.step(hook);
  context.step(hook);
  context.gathered.at(0).second(
      {R"({"met": 0, "phases": [["work", 0, 1], ["work", 1, 2.5], ["wait", 2.5, 3]]})",
       R"({"met": 0, "phases": [["work", 0, 1], ["wait", 1, 3]]})"});
  context.writer.flush();
  const auto events = test::events_in(folder.path);
  REQUIRE(events.size() == 2);
  CHECK(events[0].tag == "profile/wait");
  CHECK(events[0].value == doctest::Approx(2));
  CHECK(events[0].step == 2);
  CHECK(events[1].tag == "profile/work");
  CHECK(events[1].value == doctest::Approx(2.5));
}

TEST_CASE("a profile that cannot be written costs a warning, not the run") {
  const test::Folder folder;
  test::FakeContext context;
  ProfilerHook hook({.save_steps = 1, .output_dir = folder.path / "timeline-2.json" / "below"});
  PosixFileSystem().open_directory(folder.path)->create("timeline-2.json")->close();
  CHECK(recorded(hook, context, 3, 1.0) == Steps{2, 3});
  REQUIRE(context.messages->lines.size() == 2);
  CHECK(context.messages->lines[0].starts_with("the profile of step 2 is not written: "));
}

}  // namespace lockstep
