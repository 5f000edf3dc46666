#include <exception>

#include <nlohmann/json.hpp>

#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/status_file.hpp>

namespace lockstep {
namespace {
constexpr std::uint64_t kMaxStatusBytes = std::uint64_t{1} << 20;
}

bool goes_on(const RunStatus& before) noexcept {
  return before.state == "running" || before.state == "stopped";
}

std::optional<RunStatus> read_status(Directory& directory) noexcept {
  try {
    const std::string name(kStatusFileName);
    if (!directory.exists(name)) return std::nullopt;
    const auto file = directory.open(name);
    const auto bytes = read_all(*file, kMaxStatusBytes);
    const auto* text = reinterpret_cast<const char*>(bytes.data());
    const auto document = nlohmann::json::parse(text, text + bytes.size());
    RunStatus status;
    status.state = document.at("state").get<std::string>();
    if (!document.at("exit_code").is_null()) status.exit_code = document.at("exit_code").get<int>();
    status.reason = document.at("reason").get<std::string>();
    status.global_step = document.at("global_step").get<std::int64_t>();
    status.restarts = document.at("restarts").get<std::int64_t>();
    status.pid = document.at("pid").get<std::int64_t>();
    status.host = document.at("host").get<std::string>();
    status.job = document.at("job").get<std::string>();
    status.updated = document.at("updated").get<double>();
    return status;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

void write_status(Directory& directory, const RunStatus& status) {
  nlohmann::json document = {{"state", status.state},       {"exit_code", nullptr},
                             {"reason", status.reason},     {"global_step", status.global_step},
                             {"restarts", status.restarts}, {"pid", status.pid},
                             {"host", status.host},         {"job", status.job},
                             {"updated", status.updated}};
  if (status.exit_code) document["exit_code"] = *status.exit_code;
  // A reason may quote anything; bytes that are not UTF-8 must not make the status unwritable.
  const std::string text = document.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  replace_file(directory, std::string(kStatusFileName), std::as_bytes(std::span(text)));
}

}  // namespace lockstep
