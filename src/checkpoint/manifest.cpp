#include "manifest.hpp"

#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/names.hpp>

namespace lockstep {
namespace {

std::byte* bytes_of(std::string& text) {
  return reinterpret_cast<std::byte*>(text.data());
}

}  // namespace

Manifest::Manifest(std::vector<Entry> entries, const ShardTable& table, std::string_view basename)
    : from_(std::move(entries)), cut_(table.cut) {
  for (const Entry& entry : from_) held_.emplace_back(entry.bytes());
  shards_.reserve(table.count);
  for (std::size_t k = 0; k < table.count; ++k) {
    shards_.push_back({shard_name(basename, 0, static_cast<int>(k)), Digest{}.hex(), 0});
  }
}

std::vector<Entry> Manifest::entries() {
  std::vector<Entry> entries = from_;
  for (std::size_t i = 0; i < entries.size(); ++i) entries[i].data = held_[i].data();
  const auto length = [](const std::string& text) { return Shape{static_cast<std::int64_t>(text.size())}; };
  for (std::size_t k = 0; k < shards_.size(); ++k) {
    Shard& shard = shards_[k];
    const std::string folder = fmt::format("{}{}/", kShardsFolder, k);
    entries.push_back({folder + "name", ElementType::text, length(shard.name), bytes_of(shard.name)});
    entries.push_back({folder + "digest", ElementType::text, length(shard.digest), bytes_of(shard.digest)});
    entries.push_back({folder + "bytes", ElementType::i64, {}, reinterpret_cast<std::byte*>(&shard.bytes)});
  }
  for (auto& [path, shape] : cut_) {
    entries.push_back({std::string(kCutFolder) + path.substr(1),
                       ElementType::i64,
                       {static_cast<std::int64_t>(shape.size())},
                       reinterpret_cast<std::byte*>(shape.data())});
  }
  return entries;
}

void Manifest::hold() {
  for (std::size_t i = 0; i < from_.size(); ++i) {
    std::memcpy(held_[i].data(), from_[i].data, held_[i].size());
  }
}

void Manifest::set(std::size_t shard, const ShardRecord& record) {
  Shard& place = shards_[shard];
  if (record.name.size() != place.name.size() || record.digest.size() != place.digest.size()) {
    throw InternalError("a shard's name does not fit its manifest");
  }
  // Into the same memory: the layout of the image points there.
  std::memcpy(place.name.data(), record.name.data(), record.name.size());
  std::memcpy(place.digest.data(), record.digest.data(), record.digest.size());
  place.bytes = static_cast<std::int64_t>(record.bytes);
}

std::vector<ShardRecord> shard_records(std::span<const Entry> entries, const std::string& file) {
  std::map<std::string_view, const Entry*> told;
  for (const Entry& entry : entries) {
    if (entry.path.starts_with(kShardsFolder)) told.emplace(entry.path, &entry);
  }
  const auto refuse = [&](const std::string& path) {
    throw DataError(
        fmt::format("{} is not a checkpoint that is read here: '{}' is missing or none", file, path));
  };
  const auto text = [&](const std::string& path) {
    const auto found = told.find(path);
    if (found == told.end() || found->second->type != ElementType::text) refuse(path);
    return std::string(reinterpret_cast<const char*>(found->second->data), found->second->bytes());
  };
  std::vector<ShardRecord> records;
  for (;;) {
    const std::string folder = fmt::format("{}{}/", kShardsFolder, records.size());
    if (!told.contains(folder + "name")) break;
    ShardRecord record{text(folder + "name"), 0, text(folder + "digest")};
    const auto bytes = told.find(folder + "bytes");
    if (bytes == told.end() || bytes->second->type != ElementType::i64 || !bytes->second->shape.empty()) {
      refuse(folder + "bytes");
    }
    std::memcpy(&record.bytes, bytes->second->data, sizeof record.bytes);
    if (!is_plain_name(record.name)) refuse(folder + "name");
    records.push_back(std::move(record));
  }
  if (records.empty() && !told.empty()) refuse(std::string(told.begin()->first));
  return records;
}

}  // namespace lockstep
