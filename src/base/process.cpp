#include <array>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include <sys/random.h>
#include <unistd.h>

#include <lockstep/base/process.hpp>

namespace lockstep {

std::string SystemIdentity::host() const {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "unknown-host";
  return name.data();
}

std::string SystemIdentity::boot_id() const {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  file >> id;
  return id;
}

std::int64_t SystemIdentity::pid() const {
  return ::getpid();
}

std::optional<std::uint64_t> SystemIdentity::start_time(std::int64_t pid) const {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  // The second field is the command in parentheses, which may itself hold spaces and parentheses.
  const auto command_end = text.rfind(')');
  if (command_end == std::string::npos) return std::nullopt;
  std::istringstream rest(text.substr(command_end + 1));
  std::string state;
  rest >> state;
  if (state == "Z" || state == "X") return std::nullopt;  // dead, only not yet collected by its parent
  constexpr int kFieldsToStartTime = 18;                  // field 22 of proc(5), after field 3
  std::string skipped;
  for (int field = 0; field < kFieldsToStartTime; ++field) rest >> skipped;
  std::uint64_t ticks = 0;
  return rest >> ticks ? std::optional(ticks) : std::nullopt;
}

std::string SystemIdentity::job_id() const {
  const char* job = std::getenv("SLURM_JOB_ID");
  return job == nullptr ? "" : std::string("slurm-") + job;
}

std::int64_t SystemIdentity::job_restarts() const {
  // Not set in a job's first run.
  const char* count = std::getenv("SLURM_RESTART_COUNT");
  return count == nullptr ? 0 : std::strtoll(count, nullptr, 10);
}

std::uint64_t SystemIdentity::nonce() {
  std::uint64_t value = 0;
  if (::getrandom(&value, sizeof value, 0) == static_cast<ssize_t>(sizeof value)) return value;
  const auto ticks = std::chrono::steady_clock::now().time_since_epoch().count();
  return static_cast<std::uint64_t>(ticks) ^ (static_cast<std::uint64_t>(::getpid()) << 40);
}

}  // namespace lockstep
