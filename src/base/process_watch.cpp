#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <lockstep/base/process.hpp>
#include <lockstep/base/process_watch.hpp>

namespace lockstep {
namespace {

bool lives(const ProcessWatch::Process& process) {
  return SystemIdentity().start_time(process.pid) == process.start_time;
}

}  // namespace

std::string ProcessWatch::scope() {
  std::error_code unknown;
  return SystemIdentity().boot_id() + " " +
         std::filesystem::read_symlink("/proc/self/ns/pid", unknown).string();
}

ProcessWatch::ProcessWatch(const std::vector<Process>& processes) {
  for (const Process& process : processes) {
    auto fd = static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(process.pid), 0U));
    // Only now is it sure that the descriptor is not that of a later process of the same number.
    if (fd >= 0 && !lives(process)) {
      ::close(fd);
      fd = -1;
    }
    watched_.push_back({process, fd});
  }
}

ProcessWatch::~ProcessWatch() {
  for (const Watched& one : watched_) {
    if (one.fd >= 0) ::close(one.fd);
  }
}

std::optional<std::size_t> ProcessWatch::ended() const {
  std::vector<pollfd> asked;
  for (std::size_t i = 0; i < watched_.size(); ++i) {
    if (watched_[i].fd < 0 && !lives(watched_[i].process)) return i;
    asked.push_back({.fd = watched_[i].fd, .events = POLLIN, .revents = 0});  // poll skips negative ones
  }
  if (::poll(asked.data(), asked.size(), 0) <= 0) return std::nullopt;
  for (std::size_t i = 0; i < asked.size(); ++i) {
    if ((asked[i].revents & POLLIN) != 0) return i;
  }
  return std::nullopt;
}

ProcessWatch::State ProcessWatch::state(const Process& process) {
  std::ifstream file("/proc/" + std::to_string(process.pid) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!lives(process)) return State::ended;
  // After the command in parentheses, which may itself hold spaces and parentheses.
  const auto command_end = text.rfind(')');
  const bool stopped = command_end != std::string::npos && text.substr(command_end).starts_with(") T");
  return stopped ? State::stopped : State::there;
}

void ProcessWatch::kill(const Process& process) {
  const auto fd = static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(process.pid), 0U));
  if (lives(process)) {
    if (fd < 0 || ::syscall(SYS_pidfd_send_signal, fd, SIGKILL, nullptr, 0U) != 0) {
      ::kill(static_cast<pid_t>(process.pid), SIGKILL);
    }
  }
  if (fd >= 0) ::close(fd);
}

}  // namespace lockstep
