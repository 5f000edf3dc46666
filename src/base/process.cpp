#include <array>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string_view>
#include <vector>

#include <elf.h>
#include <link.h>
#include <sys/random.h>
#include <unistd.h>

#include <lockstep/base/digest.hpp>
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

std::string SystemIdentity::program() const {
  std::string id;
  const auto of_main_program = [](dl_phdr_info* info, std::size_t, void* result) {
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const ElfW(Phdr)& segment = info->dlpi_phdr[i];
      if (segment.p_type != PT_NOTE) continue;
      const auto* at = reinterpret_cast<const std::byte*>(info->dlpi_addr + segment.p_vaddr);
      const auto* end = at + segment.p_memsz;
      const auto padded = [](std::size_t size) { return (size + 3) / 4 * 4; };
      while (at + sizeof(ElfW(Nhdr)) <= end) {
        ElfW(Nhdr) note;
        std::memcpy(&note, at, sizeof note);
        const auto* name = at + sizeof note;
        const auto* bytes = name + padded(note.n_namesz);
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(name, "GNU", 4) == 0) {
          constexpr std::string_view kDigits = "0123456789abcdef";
          for (std::size_t b = 0; b < note.n_descsz; ++b) {
            *static_cast<std::string*>(result) += kDigits[std::to_integer<unsigned>(bytes[b]) >> 4];
            *static_cast<std::string*>(result) += kDigits[std::to_integer<unsigned>(bytes[b]) & 15];
          }
        }
        at = bytes + padded(note.n_descsz);
      }
    }
    return 1;  // the first object is the program itself
  };
  dl_iterate_phdr(of_main_program, &id);
  if (!id.empty()) return "build id " + id;
  std::ifstream file("/proc/self/exe", std::ios::binary);
  if (!file) return {};
  Hasher hasher;
  std::vector<char> piece(std::size_t{1} << 20);
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
    hasher.update(std::string_view(piece.data(), static_cast<std::size_t>(file.gcount())));
  }
  return "digest " + hasher.digest().hex();
}

std::uint64_t SystemIdentity::nonce() {
  std::uint64_t value = 0;
  if (::getrandom(&value, sizeof value, 0) == static_cast<ssize_t>(sizeof value)) return value;
  const auto ticks = std::chrono::steady_clock::now().time_since_epoch().count();
  return static_cast<std::uint64_t>(ticks) ^ (static_cast<std::uint64_t>(::getpid()) << 40);
}

}  // namespace lockstep
