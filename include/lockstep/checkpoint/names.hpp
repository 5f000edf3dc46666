#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lockstep {

// Every name that a checkpoint directory may hold is made or recognised here. All functions are local and
// pure.

inline constexpr std::string_view kStateFileName = "checkpoint.json";
inline constexpr std::string_view kStatusFileName = "status.json";
inline constexpr std::string_view kLockFileName = ".lock";
inline constexpr std::string_view kHeartbeatFileName = ".heartbeat";
inline constexpr std::string_view kDefaultBasename = "ckpt";

/// What the name of a checkpoint says. Later ones compare greater: by step, then by suffix.
struct CheckpointName {
  std::int64_t step = 0;
  int suffix = 0;  ///< 0: none; 1, 2...: other content was saved at the same step before

  friend auto operator<=>(const CheckpointName&, const CheckpointName&) = default;
};

/// At most 128 letters, digits, '.', '_', '-', not starting with '.': what may name a file of a directory.
bool is_plain_name(std::string_view name) noexcept;

/// "ckpt-00001200.h5", or "ckpt-00001200-1.h5" with a suffix.
std::string to_file_name(std::string_view basename, const CheckpointName& name);

/// The inverse; nullopt for every other text, however close.
std::optional<CheckpointName> parse_file_name(std::string_view basename, std::string_view file);

/// True for the name of a checkpoint with any basename.
bool is_checkpoint_name(std::string_view file);

/// "ckpt.0123456789abcdef.shard3.h5": shard `number` of the checkpoint that was saved under the nonce `save`.
std::string shard_name(std::string_view basename, std::uint64_t save, int number);

/// True for the name of a shard of a checkpoint with this basename.
bool is_shard_name(std::string_view basename, std::string_view file);

/// ".NAME.tmp.NONCE": a file on its way to being NAME.
std::string temporary_name(std::string_view name, std::uint64_t nonce);

/// True for a temporary name of a checkpoint.
bool is_temporary_checkpoint(std::string_view basename, std::string_view file);

/// "NAME.damaged-K" and "NAME.superseded-K": set aside, never read by themselves and never deleted.
std::string damaged_name(std::string_view name, int k);
std::string superseded_name(std::string_view name, int k);
bool is_set_aside(std::string_view file);

}  // namespace lockstep
