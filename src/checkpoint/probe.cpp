#include <algorithm>
#include <array>
#include <cstddef>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/probe.hpp>

namespace lockstep {

void probe_directory(Directory& directory, std::uint64_t checkpoint_bytes, ProcessIdentity& identity) {
  constexpr std::size_t kProbeBytes = 4096;
  const std::string temporary = temporary_name("probe", identity.nonce());
  const std::string renamed = temporary + ".renamed";
  const auto clean_up = [&] {
    for (const std::string& name : {temporary, renamed}) {
      try {
        if (directory.exists(name)) directory.remove(name);
      } catch (const FileError&) {
        // What made the probe fail is told; a file that cannot be removed either adds nothing.
      }
    }
  };
  try {
    std::array<std::byte, kProbeBytes> written{};
    written.fill(std::byte{0x5a});
    {
      const auto file = directory.create(temporary);
      file->write(written);
      file->sync();
      file->close();
    }
    directory.rename(temporary, renamed);
    directory.sync();
    std::array<std::byte, kProbeBytes> read{};
    const std::size_t count = directory.open(renamed)->read(0, read);
    if (count != read.size() || read != written) {
      throw IoError("what was written to it is not what is read back");
    }
    directory.remove(renamed);
    directory.sync();
  } catch (const IoError& error) {
    clean_up();
    throw IoError(
        fmt::format("checkpoint_dir '{}' cannot take checkpoints: {}; choose another directory before "
                    "step 1, nothing has been trained yet",
                    directory.path().string(), error.what()));
  }
  const std::uint64_t free = directory.available_bytes();
  if (free / 2 < checkpoint_bytes) {
    throw IoError(
        fmt::format("checkpoint_dir '{}' has {} bytes left (two checkpoints need {}, and the newest must "
                    "never be the only one while the next is written); make room or choose another "
                    "directory, nothing has been trained yet",
                    directory.path().string(), free, 2 * checkpoint_bytes));
  }
}

}  // namespace lockstep
