#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/process.hpp>

using namespace lockstep;

namespace {

class Recorder final : public Log::Sink {
 public:
  void write(LogLevel level, std::string_view message) override {
    lines.push_back(std::to_string(static_cast<int>(level)) + " " + std::string(message));
  }
  std::vector<std::string> lines;
};

}  // namespace

TEST_CASE("a default log is silent") {
  const Log log;
  log.info("nobody hears this");
  log.progress("nor this");
  CHECK_FALSE(log.interactive());
}

TEST_CASE("copies of a log share its destination, and messages carry their level") {
  const auto recorder = std::make_shared<Recorder>();
  const Log log(recorder);
  const Log copy = log;
  log.info("a");
  copy.warn("b");
  log.error("c");
  copy.progress("d");  // not kept anywhere
  CHECK(recorder->lines == std::vector<std::string>{"0 a", "1 b", "2 c"});
}

TEST_CASE("the log file gets plain dated lines, and a second run adds to it") {
  const auto path =
      std::filesystem::temp_directory_path() / ("lockstep_log_" + std::to_string(SystemIdentity().nonce()));
  for (int run = 0; run < 2; ++run) {
    const Log log = Log::standard("[rank 3] ", path);
    log.warn("{} is no format");
    log.progress("50%");
  }
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::filesystem::remove(path);
  CHECK(std::count(text.begin(), text.end(), '\n') == 2);
  CHECK(text.find(" warning [rank 3] warning: {} is no format\n") ==
        std::string("2026-01-31 12:00:00.000").size());
  CHECK(text.find('\033') == std::string::npos);
  CHECK(text.find("50%") == std::string::npos);
}

TEST_CASE("a log file that cannot be opened is an IoError that names the option") {
  std::string message;
  try {
    Log::standard("", "/proc/none/log");
  } catch (const IoError& error) {
    message = error.what();
  }
  CHECK(message.find("--log_file") != std::string::npos);
}
