// Damages any of the checkpoints that are kept but one, puts anything in the place of the state file, and
// restores: the newest that is whole is taken, and a folder without one is refused.
//
//   fall_back [--size full] [--first]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <sys/stat.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/random.hpp>
#include <lockstep/checkpoint/lock.hpp>
#include <lockstep/checkpoint/restore.hpp>
#include <lockstep/checkpoint/saver.hpp>

#include "job.hpp"

namespace lockstep::test {
namespace {

/// Draws one number after the other.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : random_(seed, Purpose::test) {}
  std::uint32_t below(std::size_t bound) { return random_.below(next_++, static_cast<std::uint32_t>(bound)); }

 private:
  Random random_;
  std::uint32_t next_ = 0;
};

struct Model {
  Model() {
    state.parameter("dense/w", {7, 5});
    state.slot("velocity");
    state.setting("model", "fall back");
    PlainAllocator allocator;
    state.freeze(allocator);
  }
  void set(std::int64_t step) {
    std::ranges::fill(state.parameters(), static_cast<float>(step) + 0.5F);
    state.set_global_step(step);
  }
  State state;
};

class LastLines final : public Log::Sink {
 public:
  void write(LogLevel, std::string_view message) override {
    lines.emplace_back(message);
    text += lines.back() + "\n";
  }

  bool tells_of_passing_over(const std::string& name) const {
    return std::ranges::any_of(lines, [&](const std::string& line) {
      return line.find(name) != std::string::npos &&
             (line.find("trying the next older") != std::string::npos || line.starts_with("passing over"));
    });
  }

  std::vector<std::string> lines;
  std::string text;
};

void write_file(const std::filesystem::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary).write(content.data(), static_cast<std::streamsize>(content.size()));
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A folder with five checkpoints; its files by name.
std::map<std::string, std::string> make_files(const std::filesystem::path& folder) {
  std::map<std::string, std::string> files;
  Model model;
  FakeClock clock;
  InlineExecutor executor;
  SystemIdentity identity;
  {
    const std::shared_ptr<Directory> directory = PosixFileSystem().create_directory(folder);
    const DirectoryLock lock(directory, clock, executor, {}, identity);
    Saver saver(directory, model.state.entries(), {.max_to_keep = 0}, clock, executor, {}, lock.token(),
                identity);
    for (std::int64_t step = 1; step <= 5; ++step) {
      model.set(step * 10);
      saver.start(step * 10);
    }
    saver.wait();
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    files[entry.path().filename()] = read_file(entry.path());
  }
  return files;
}

constexpr std::uint32_t kOtherKinds = 4;

/// Something that is no file in the place of one that was removed, or nothing: kind 0 to 3. Returns what it
/// did.
std::string put_other_kind(std::uint32_t kind, const std::filesystem::path& path,
                           const std::string& link_target) {
  switch (kind) {
    case 0:
      return "missing";
    case 1:
      std::filesystem::create_directory(path);
      return "a folder";
    case 2:
      ::mkfifo(path.c_str(), 0600);
      return "a pipe";
    default:
      std::filesystem::create_symlink(link_target, path);
      return "a link to " + link_target;
  }
}

/// Puts something else in the place of a file. Returns what it did.
std::string damage(Dice& dice, const std::filesystem::path& path, std::string content,
                   const std::string& other_file, const std::string& other_content) {
  std::filesystem::remove(path);
  const std::size_t at = dice.below(content.size());
  const std::uint32_t kind = dice.below(12);
  if (kind < kOtherKinds) return put_other_kind(kind, path, other_file);
  switch (kind) {
    case 4:
      write_file(path, content.substr(0, at));
      return fmt::format("cut after {} bytes", at);
    case 5:
      write_file(path, content + std::string(1 + dice.below(5000), static_cast<char>(dice.below(256))));
      return "continued";
    case 6:
      write_file(path, other_content);
      return "the content of another";
    case 7:
      for (char& byte : content) byte = static_cast<char>(dice.below(256));
      write_file(path, content);
      return "noise";
    case 8:
    case 9: {
      const std::size_t count = std::min<std::size_t>(1 + dice.below(4096), content.size() - at);
      const char fill = dice.below(2) == 0 ? '\0' : '\xff';
      const std::string before = content;
      content.replace(at, count, count, fill);
      if (content == before) content[at] ^= 1;
      write_file(path, content);
      return fmt::format("{} bytes overwritten at {}", count, at);
    }
    default:
      content[at] ^= static_cast<char>(1 << dice.below(8));
      write_file(path, content);
      return fmt::format("a bit flipped at {}", at);
  }
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

/// Any content, and any kind of file, in the place of the state file.
std::string disturb_state_file(Dice& dice, const std::filesystem::path& path, std::string content) {
  std::filesystem::remove(path);
  const std::size_t at = dice.below(content.size());
  const std::uint32_t kind = dice.below(16);
  if (kind < kOtherKinds) return put_other_kind(kind, path, "/etc/passwd");
  switch (kind) {
    case 4:
      content.resize(at);
      break;
    case 5:
      replace_all(content, "ckpt-00000050", "ckpt-00000090");
      break;
    case 6:
      replace_all(content, "ckpt-", "../ckpt-");
      break;
    case 7:
      replace_all(content, "ckpt-00000050.h5", "/etc/passwd");
      break;
    case 8:
      replace_all(content, "\"step\": 50", "\"step\": -50");
      break;
    case 9:
      content = std::string(1 << 20, "[{ a\0"[dice.below(5)]);
      break;
    case 10:
      for (char& byte : content) byte = static_cast<char>(dice.below(256));
      break;
    case 11:
      replace_all(content, "\"token\": 1", "\"token\": 99");
      break;
    case 12:  // as that of a later owner, who does not know the newest
      replace_all(content, "\"token\": 1", "\"token\": 99");
      replace_all(content, "ckpt-00000050", "ckpt-00000090");
      break;
    default:
      content[at] = static_cast<char>(dice.below(256));
  }
  write_file(path, content);
  return fmt::format("{} bytes", content.size());
}

class Cases {
 public:
  explicit Cases(const std::filesystem::path& scratch)
      : folder_(scratch / "run"), files_(make_files(scratch / "good")) {}

  void run(std::uint64_t number) {
    Dice dice(number);
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
    std::vector<std::string> names;
    const std::size_t first = dice.below(4);
    for (const auto& [name, content] : files_) {
      if (name == "checkpoint.json" || (names.empty() && first > names_skipped_(name))) continue;
      names.push_back(name);
    }
    for (const std::string& name : names) write_file(folder_ / name, files_[name]);
    // One case in twenty leaves none.
    const bool none = dice.below(20) == 0;
    const std::size_t spared = none ? names.size() : dice.below(names.size());
    std::string story;
    std::optional<std::int64_t> expected;
    bool newest_is_there = true;
    bool any_is_there = false;
    for (std::size_t i = 0; i < names.size(); ++i) {
      const std::int64_t step = std::strtol(names[i].c_str() + 5, nullptr, 10);
      // All newer than the spared one, and some that are older.
      if (i == spared || (i < spared && dice.below(2) == 0)) {
        expected = step;
        continue;
      }
      const std::string& other = names[i == 0 ? names.size() - 1 : i - 1];
      const std::string what = damage(dice, folder_ / names[i], files_[names[i]], other, files_[other]);
      story += fmt::format("{}: {}; ", names[i], what);
      any_is_there |= what != "missing";
      if (i + 1 == names.size()) newest_is_there = what != "missing";
    }
    story += "checkpoint.json: " +
             disturb_state_file(dice, folder_ / "checkpoint.json", files_["checkpoint.json"]);
    check(number, story, expected, newest_is_there ? names.back() : "", any_is_there);
  }

  Totals totals;

 private:
  static std::size_t names_skipped_(const std::string& name) {
    return static_cast<std::size_t>(std::strtol(name.c_str() + 5, nullptr, 10) / 10 - 1);
  }

  void check(std::uint64_t number, const std::string& story, std::optional<std::int64_t> expected,
             const std::string& newest, bool any_is_there) {
    ++totals.points;
    std::string problem;
    const auto log = std::make_shared<LastLines>();
    const auto entries_before = count_entries();
    Model model;
    const std::shared_ptr<Directory> directory = PosixFileSystem().open_directory(folder_);
    try {
      const auto restored =
          restore_latest(Communicator::self(), directory.get(), model.state, {.log = Log(log)});
      if (!restored) {
        if (expected || any_is_there) problem = "a fresh start, in silence";
      } else if (!expected || restored->step != *expected) {
        problem = fmt::format("it went on from {}", restored->step);
      } else {
        Model right;
        right.set(*expected);
        if (content_digest(model.state.entries()) != content_digest(right.state.entries())) {
          problem = "it restored other values";
        }
        const bool passed_over = parse_file_name(kDefaultBasename, newest) != CheckpointName{*expected, 0};
        if (passed_over && !newest.empty() && !log->tells_of_passing_over(newest)) {
          problem = "what was passed over is not named";
        }
      }
      if (count_entries() != entries_before) problem += " files came or went";
      if (problem.empty() && restored) problem = go_on(directory, model, *expected + 1);
    } catch (const DataError& error) {
      if (expected) problem = error.what();
    } catch (const std::exception& error) {
      problem = error.what();
    }
    if (problem.empty()) return;
    ++totals.problems;
    told_problem();
    std::printf("case %llu: %s\n  expected %lld, but: %s\n  log: %s\n",
                static_cast<unsigned long long>(number), story.c_str(),
                static_cast<long long>(expected.value_or(-1)), problem.c_str(), log->text.c_str());
  }

  /// The next save, and the start after it.
  std::string go_on(const std::shared_ptr<Directory>& directory, Model& model, std::int64_t step) const {
    FakeClock clock;
    InlineExecutor executor;
    SystemIdentity identity;
    const DirectoryLock lock(directory, clock, executor, {}, identity);
    Saver saver(directory, model.state.entries(), {.max_to_keep = 0}, clock, executor, {}, lock.token(),
                identity);
    model.set(step);
    saver.start(step);
    saver.wait();
    Model next;
    const auto restored = restore_latest(Communicator::self(), directory.get(), next.state);
    if (!restored || restored->step != step) return "the start after the next save went on from elsewhere";
    return content_digest(next.state.entries()) == content_digest(model.state.entries()) ? ""
                                                                                         : "other values";
  }

  std::ptrdiff_t count_entries() const {
    return std::distance(std::filesystem::directory_iterator(folder_), {});
  }

  std::filesystem::path folder_;
  std::map<std::string, std::string> files_;
};

}  // namespace
}  // namespace lockstep::test

int main(int argc, char** argv) {
  using namespace lockstep::test;
  may_end_at_first(argc, argv);
  const std::uint64_t count = is_full(argc, argv) ? 200'000 : 10'000;
  const Totals totals = on_all_cores([&](int worker, int workers, const std::filesystem::path& scratch) {
    Cases cases(scratch);
    for (auto i = static_cast<std::uint64_t>(worker); i < count && !is_enough();
         i += static_cast<std::uint64_t>(workers)) {
      cases.run(i);
    }
    return cases.totals;
  });
  return report(totals, static_cast<long>(count));
}
