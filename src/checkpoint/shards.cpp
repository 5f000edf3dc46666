#include <algorithm>
#include <exception>
#include <functional>
#include <set>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/shards.hpp>
#include <lockstep/checkpoint/state_file.hpp>

#include "image_file.hpp"
#include "manifest.hpp"

namespace lockstep {
namespace {

/// The first element of `entry` in `arena`; nullopt when it lies elsewhere.
std::optional<std::size_t> place_in(std::span<const float> arena, const Entry& entry) {
  const std::less<const std::byte*> before;
  const auto bytes = std::as_bytes(arena);
  if (bytes.empty() || before(entry.data, bytes.data()) || !before(entry.data, bytes.data() + bytes.size())) {
    return std::nullopt;
  }
  return static_cast<std::size_t>(entry.data - bytes.data()) / sizeof(float);
}

/// In the parameters or a slot, whose elements are dealt out.
std::optional<std::size_t> place_in_parts(const State& state, const Entry& entry) {
  if (const auto place = place_in(state.parameters(), entry)) return place;
  for (const std::string& slot : state.slot_names()) {
    if (const auto place = place_in(state.slot_values(slot), entry)) return place;
  }
  return std::nullopt;
}

void deal_out(const Entry& entry, std::size_t place, std::span<const ShardPart> parts, CutState& result) {
  const auto size = static_cast<std::size_t>(element_count(entry.shape));
  for (std::size_t k = 0; k < parts.size(); ++k) {
    const std::size_t first = std::max(parts[k].elements.first, place);
    const std::size_t last = std::min(parts[k].elements.last, place + size);
    if (first >= last) continue;
    if (last - first == size) {
      result.shards[k].push_back(entry);
      return;
    }
    result.table.cut[entry.path] = entry.shape;
    result.shards[k].push_back({fmt::format("{}@{}", entry.path, first - place),
                                ElementType::f32,
                                {static_cast<std::int64_t>(last - first)},
                                entry.data + (first - place) * sizeof(float)});
  }
}

/// The numbers of a name like a shard's are no reason to look into every checkpoint.
bool has_shards(Directory& directory, const std::string& basename) {
  return std::ranges::any_of(
      directory.list(), [&](const DirectoryEntry& entry) { return is_shard_name(basename, entry.name); });
}

}  // namespace

CutState cut_into_shards(const State& state, std::span<const ShardPart> parts) {
  CutState result;
  result.shards.resize(parts.size());
  const auto arenas = state.kept_arenas();
  for (const Entry& entry : state.entries()) {
    if (const auto place = place_in_parts(state, entry)) {
      deal_out(entry, *place, parts, result);
    } else if (!entry.path.starts_with("/session/") && !entry.path.starts_with("/config/")) {
      result.shards[0].push_back(entry);
    } else {
      const auto owner = std::ranges::find_if(parts, [&](const ShardPart& part) {
        return part.kept_arena && place_in(arenas[*part.kept_arena], entry);
      });
      auto& entries = owner == parts.end() ? result.manifest
                                           : result.shards[static_cast<std::size_t>(owner - parts.begin())];
      entries.push_back(entry);
    }
    result.table.bytes += entry.bytes();
  }
  result.table.count = parts.size();
  return result;
}

ShardWriter::ShardWriter(std::shared_ptr<Directory> directory, std::vector<Entry> entries, Options options,
                         Clock& clock, Executor& executor)
    : directory_(std::move(directory)),
      image_(std::move(entries)),
      options_(std::move(options)),
      clock_(clock),
      worker_(executor.start("shard")) {}

ShardWriter::~ShardWriter() = default;

void ShardWriter::start(std::int64_t step, std::uint64_t save) {
  if (!name_.empty()) throw InternalError("a shard is written while the one before has no end");
  problem_.clear();
  started_ = true;
  if (const Entry* bad = image_.snapshot()) {
    problem_ = fmt::format("'{}' has values that are not finite", bad->path);
    return;
  }
  name_ = shard_name(options_.basename, save, options_.number);
  worker_->post([this, step] { write(step); });
}

void ShardWriter::write(std::int64_t step) noexcept {
  try {
    const Stamp stamp{step, options_.token, clock_.wall_seconds(), {}};
    write_image_file(*directory_, name_, image_, stamp, options_.key.get(), options_.verify_after_write);
    directory_->sync();
  } catch (const std::exception& error) {
    problem_ = error.what();
  }
}

void ShardWriter::discard() noexcept {
  if (name_.empty()) return;
  try {
    if (directory_->exists(name_)) directory_->remove(name_);
  } catch (const FileError&) {
    // The next owner of the directory removes it.
  }
  name_.clear();
}

std::vector<std::string> shards_of(Directory& directory, const std::string& file, const MacKey* key) {
  {
    // Whether it has any is known without reading large checkpoints.
    const auto opened = directory.open(file);
    const Trailer trailer = read_trailer(*opened, file);
    const auto index = parse_index(read_index(*opened, file), trailer.image_bytes, file);
    const bool none = std::ranges::none_of(
        index, [](const Extent& extent) { return extent.path.starts_with(kShardsFolder); });
    if (none && !index.empty()) return {};
  }
  std::vector<std::string> names;
  for (const ShardRecord& shard : manifest_shards(directory, file, key)) names.push_back(shard.name);
  return names;
}

std::vector<std::string> remove_orphaned_shards(Directory& directory, const std::string& basename,
                                                const MacKey* key) {
  std::vector<std::string> removed;
  if (!has_shards(directory, basename)) return removed;
  std::set<std::string> named;
  std::set<std::int64_t> unknown;  // steps of checkpoints that cannot be read
  const auto entries = directory.list();
  for (const DirectoryEntry& entry : entries) {
    if (is_shard_name(basename, entry.name)) continue;
    // Also what was set aside: ckpt-00001200.h5.damaged-1.
    const auto extension = entry.name.find(".h5");
    if (extension == std::string::npos || entry.name.starts_with('.')) continue;
    const auto name = parse_file_name(basename, entry.name.substr(0, extension + 3));
    try {
      for (std::string& shard : shards_of(directory, entry.name, key)) named.insert(std::move(shard));
    } catch (const Error&) {
      if (name) unknown.insert(name->step);
    }
  }
  for (const DirectoryEntry& entry : entries) {
    if (!is_shard_name(basename, entry.name) || named.contains(entry.name)) continue;
    if (!unknown.empty()) {
      try {
        if (unknown.contains(read_trailer(*directory.open(entry.name), entry.name).step)) continue;
      } catch (const DataError&) {
        // No whole shard, so that no checkpoint needs it.
      }
    }
    directory.remove(entry.name);
    removed.push_back(entry.name);
  }
  return removed;
}

}  // namespace lockstep
