// Any bytes as lock and heartbeat of a directory: a newcomer takes it over or is refused, and never anything
// else.

#include <algorithm>
#include <cstdlib>
#include <memory>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/lock.hpp>

#include "../../checkpoint/memory_directory.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace lockstep;
  const auto bytes = std::as_bytes(std::span(data, size));
  // A zero byte parts the two.
  const auto middle = std::ranges::find(bytes, std::byte{0});
  const auto directory = std::make_shared<test::MemoryDirectory>();
  const auto put = [&](const char* name, std::vector<std::byte> content) {
    directory->disk().names[name] =
        std::make_shared<test::MemoryDisk::Inode>(test::MemoryDisk::Inode{content, content});
  };
  put(".lock", {bytes.begin(), middle});
  if (middle != bytes.end()) put(".heartbeat", {middle + 1, bytes.end()});
  const auto before = read_lock(*directory);
  FakeClock clock;
  InlineExecutor executor;
  SystemIdentity identity;
  try {
    // A look or two at whoever holds it, rather than one every 50 ms.
    const LockOptions options{.local_wait = Seconds(1), .remote_limit = Seconds(1), .poll = Seconds(0.5)};
    const DirectoryLock lock(directory, clock, executor, {}, identity, options);
    if (read_lock(*directory) != lock.holder()) std::abort();
    if (before && lock.token() <= before->token) std::abort();
  } catch (const EnvironmentError&) {
    // Refused: then nothing was changed.
    if (read_lock(*directory) != before) std::abort();
  }
  return 0;
}
