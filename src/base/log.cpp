#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/log.hpp>

namespace lockstep {
namespace {

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warning:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

/// Whether a person sees standard error: it is a terminal, or a launcher of MPI jobs on this host passes it
/// on to one. The launcher gives ranks a pipe, so the question goes to the launcher's own standard error.
bool seen_by_a_person() {
  if (::isatty(STDERR_FILENO) == 1) return true;
  const std::filesystem::path parent = "/proc/" + std::to_string(::getppid());
  std::ifstream file(parent / "comm");
  std::string name;
  std::getline(file, name);
  constexpr std::array<std::string_view, 5> kLaunchers = {"mpirun", "orterun", "mpiexec", "prterun",
                                                          "mpiexec.hydra"};
  if (std::ranges::find(kLaunchers, name) == kLaunchers.end()) return false;
  std::error_code error;
  const std::string target = std::filesystem::read_symlink(parent / "fd/2", error).string();
  return !error && (target.starts_with("/dev/pts/") || target.starts_with("/dev/tty"));
}

class StandardSink final : public Log::Sink {
 public:
  StandardSink(const std::string& prefix, const std::filesystem::path& file)
      : prefix_(prefix), interactive_(seen_by_a_person()), logger_("lockstep") {
    auto terminal = std::make_shared<spdlog::sinks::stderr_color_sink_mt>(
        interactive_ ? spdlog::color_mode::always : spdlog::color_mode::never);
    terminal->set_color(spdlog::level::info, "");  // colours are for what needs attention
    terminal->set_pattern(interactive_ ? "%^%v%$" : "%v");
    logger_.sinks().push_back(std::move(terminal));
    if (!file.empty()) {
      try {
        auto lines = std::make_shared<spdlog::sinks::basic_file_sink_mt>(file.string());
        lines->set_pattern("%Y-%m-%d %H:%M:%S.%e %l %v");
        logger_.sinks().push_back(std::move(lines));
      } catch (const spdlog::spdlog_ex& failure) {
        throw IoError("cannot open the log file: " + std::string(failure.what()) +
                      "; choose another place with --log_file");
      }
    }
    logger_.flush_on(spdlog::level::info);
  }

  void write(LogLevel level, std::string_view message) override {
    end_progress();
    const char* mark = level == LogLevel::error ? "error: " : level == LogLevel::warning ? "warning: " : "";
    logger_.log(spdlog_level(level), "{}{}{}", prefix_, mark, message);
  }

  void progress(std::string_view line) override {
    if (!interactive_) return;
    std::fprintf(stderr, "\r\033[K%.*s", static_cast<int>(line.size()), line.data());
    std::fflush(stderr);
    in_progress_ = true;
  }

  bool interactive() const noexcept override { return interactive_; }

 private:
  void end_progress() {
    if (in_progress_.exchange(false)) std::fputs("\r\033[K", stderr);
  }

  std::string prefix_;
  bool interactive_;
  std::atomic<bool> in_progress_{false};
  spdlog::logger logger_;
};

}  // namespace

void Log::write(LogLevel level, std::string_view message) const {
  if (sink_) sink_->write(level, message);
}

void Log::progress(std::string_view line) const {
  if (sink_) sink_->progress(line);
}

bool Log::interactive() const noexcept {
  return sink_ && sink_->interactive();
}

Log Log::standard(const std::string& prefix, const std::filesystem::path& file) {
  return Log(std::make_shared<StandardSink>(prefix, file));
}

}  // namespace lockstep
