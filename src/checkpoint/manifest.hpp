#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/checkpoint/shards.hpp>
#include <lockstep/state/entry.hpp>

namespace lockstep {

inline constexpr std::string_view kShardsFolder = "/shards/";
inline constexpr std::string_view kCutFolder = "/shards/cut/";

/// What a manifest says of one shard.
struct ShardRecord {
  std::string name;
  std::uint64_t bytes = 0;
  std::string digest;  ///< of its trailer
};

/// Of the entries of a verified file; none where it has no shards. `file` is for messages. Throws DataError.
std::vector<ShardRecord> shard_records(std::span<const Entry> entries, const std::string& file);

/// Of a file that is verified here, without a look at the shards. Throws DataError and FileError.
std::vector<ShardRecord> manifest_shards(Directory& directory, const std::string& file, const MacKey* key);

/// The values of a manifest. Its entries never move, and keep what they have until `hold` or `set`.
class Manifest {
 public:
  Manifest(std::vector<Entry> entries, const ShardTable& table, std::string_view basename);

  /// What it holds, pointing into this.
  std::vector<Entry> entries();

  /// Takes the present values of the entries that it was made with.
  void hold();

  /// Lengths of name and digest are always the same.
  void set(std::size_t shard, const ShardRecord& record);

 private:
  struct Shard {
    std::string name;
    std::string digest;
    std::int64_t bytes = 0;
  };

  std::vector<Entry> from_;
  std::vector<std::vector<std::byte>> held_;
  std::vector<Shard> shards_;
  std::map<std::string, Shape> cut_;
};

}  // namespace lockstep
