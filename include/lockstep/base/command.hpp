#pragma once

#include <filesystem>
#include <span>
#include <string>

namespace lockstep {

/// Runs a program with its arguments, found as a shell would find it, and waits for its end; nothing to read,
/// and what it prints goes to `output`, a new file. Returns its exit code, or 128 and the number of the
/// signal that ended it. Throws IoError where it cannot be started. Local; waits as long as that takes.
int run_command(std::span<const std::string> words, const std::filesystem::path& output);

}  // namespace lockstep
