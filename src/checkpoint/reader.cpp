#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/reader.hpp>

#include "hdf5_support.hpp"
#include "manifest.hpp"

namespace lockstep {
namespace {

// Far beyond what a state can hold, and small enough that no file makes us work for long.
constexpr std::size_t kMaxEntries = 1'000'000;
constexpr std::size_t kMaxPathLength = 1024;
constexpr std::size_t kMaxDepth = 64;
constexpr int kMaxDimensions = 8;
constexpr std::size_t kMaxSettingShown = 80;

/// Walks the folders of an image and takes in only what our own writer makes.
class StructureReader {
 public:
  StructureReader(const std::string& name, std::span<std::byte> image) : name_(name), image_(image) {}

  std::vector<Entry> read() {
    const QuietHdf5 quiet;
    const Hdf5Handle file = open_image(image_);
    if (!file.valid()) refuse("/", "HDF5 cannot read it");
    const Hdf5Handle root(H5Gopen2(file.get(), "/", H5P_DEFAULT), H5Gclose);
    if (!root.valid()) refuse("/", "HDF5 cannot read its root folder");
    visit_group(root.get(), "", 0);
    std::sort(entries_.begin(), entries_.end(),
              [](const Entry& left, const Entry& right) { return left.path < right.path; });
    return std::move(entries_);
  }

 private:
  [[noreturn]] void refuse(const std::string& path, const std::string& what) const {
    throw DataError(fmt::format("{} is not a checkpoint that is read here: '{}': {}", name_, path, what));
  }

  void visit_group(hid_t group, const std::string& path, std::size_t depth) {
    if (depth > kMaxDepth) refuse(path, "folders are too deep");
    // All names first, in one pass: asking for them by number takes a time that grows with their square.
    std::vector<std::string> names;
    const auto add = [](hid_t, const char* name, const H5L_info_t*, void* data) noexcept -> herr_t {
      auto& found = *static_cast<std::vector<std::string>*>(data);
      if (found.size() == kMaxEntries || std::strlen(name) > kMaxPathLength) return -1;
      found.emplace_back(name);
      return 0;
    };
    if (H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, nullptr, add, &names) < 0) {
      refuse(path, "the folder is damaged, or has too many or too long names");
    }
    for (const std::string& name : names) visit_link(group, path, name, depth);
  }

  void visit_link(hid_t group, const std::string& path, const std::string& leaf, std::size_t depth) {
    const std::string full = path + "/" + leaf;
    if (full.size() > kMaxPathLength) refuse(path, "a name is too long");
    // Paths are shown to people, on terminals.
    const auto control = [](unsigned char c) { return c < ' ' || c == 0x7f; };
    if (leaf.empty() || leaf == "." || leaf == ".." || leaf.find('/') != std::string::npos ||
        std::ranges::any_of(leaf, control)) {
      refuse(path, "a name is not plain");
    }

    // What a link is, is known before it is followed: none leaves the file.
    H5L_info_t link{};
    if (H5Lget_info(group, leaf.c_str(), &link, H5P_DEFAULT) < 0) refuse(full, "the link is damaged");
    if (link.type != H5L_TYPE_HARD) refuse(full, "only plain links are accepted");
    const Hdf5Handle object(H5Oopen(group, leaf.c_str(), H5P_DEFAULT), H5Oclose);
    if (!object.valid()) refuse(full, "HDF5 cannot open it");
    H5O_info_t info{};
    if (H5Oget_info2(object.get(), &info, H5O_INFO_BASIC | H5O_INFO_NUM_ATTRS) < 0) {
      refuse(full, "it is damaged");
    }
    if (info.rc != 1) refuse(full, "it has more than one name");
    if (info.num_attrs != 0) refuse(full, "attributes are not accepted");
    if (++objects_ > kMaxEntries) refuse(full, "there are too many objects");
    if (info.type == H5O_TYPE_GROUP) {
      visit_group(object.get(), full, depth + 1);
    } else if (info.type == H5O_TYPE_DATASET) {
      visit_dataset(object.get(), full);
    } else {
      refuse(full, "it is neither a folder nor a tensor");
    }
  }

  void visit_dataset(hid_t dataset, const std::string& path) {
    const Hdf5Handle properties(H5Dget_create_plist(dataset), H5Pclose);
    if (!properties.valid()) refuse(path, "it is damaged");
    if (H5Pget_layout(properties.get()) != H5D_CONTIGUOUS) refuse(path, "its layout is not contiguous");
    if (H5Pget_external_count(properties.get()) != 0) refuse(path, "its values are in another file");
    if (H5Pget_nfilters(properties.get()) != 0) refuse(path, "filters are not accepted");

    Entry entry;
    entry.path = path;
    const std::uint64_t element_bytes = read_type(dataset, entry);
    read_shape(dataset, entry);
    std::uint64_t bytes = element_bytes;
    for (const std::int64_t n : entry.shape) {
      // Every factor is at most the image, so that the product is checked before it can wrap.
      if (static_cast<std::uint64_t>(n) > image_.size() / bytes) {
        refuse(path, fmt::format("its shape {} has more bytes than the file", to_string(entry.shape)));
      }
      bytes *= static_cast<std::uint64_t>(n);
    }
    if (entry.type == ElementType::text) entry.shape = {static_cast<std::int64_t>(element_bytes)};
    const haddr_t offset = H5Dget_offset(dataset);
    if (offset == HADDR_UNDEF || offset > image_.size() || bytes > image_.size() - offset ||
        H5Dget_storage_size(dataset) != bytes) {
      refuse(path, "its values are not inside the file");
    }
    entry.data = image_.data() + offset;
    entries_.push_back(std::move(entry));
  }

  /// Sets the type and returns the bytes of an element; a text is one element.
  std::uint64_t read_type(hid_t dataset, Entry& entry) const {
    const Hdf5Handle type(H5Dget_type(dataset), H5Tclose);
    if (!type.valid() || H5Tcommitted(type.get()) != 0) refuse(entry.path, "its type is not plain");
    if (H5Tget_class(type.get()) == H5T_STRING) {
      const std::size_t size = H5Tget_size(type.get());
      if (H5Tis_variable_str(type.get()) != 0 || H5Tget_strpad(type.get()) != H5T_STR_NULLPAD ||
          H5Tget_cset(type.get()) != H5T_CSET_UTF8 || size == 0 || size > image_.size()) {
        refuse(entry.path, "it is not a text of fixed length in UTF-8");
      }
      entry.type = ElementType::text;
      return size;
    }
    for (const ElementType known :
         {ElementType::f32, ElementType::f64, ElementType::i32, ElementType::i64, ElementType::u8}) {
      if (H5Tequal(type.get(), stored_number_type(known)) > 0) {
        entry.type = known;
        return size_in_bytes(known);
      }
    }
    refuse(entry.path, "its type is none of f32, f64, i32, i64, u8, text in little-endian order");
  }

  void read_shape(hid_t dataset, Entry& entry) const {
    const Hdf5Handle space(H5Dget_space(dataset), H5Sclose);
    const H5S_class_t kind = space.valid() ? H5Sget_simple_extent_type(space.get()) : H5S_NO_CLASS;
    if (kind == H5S_SCALAR) return;
    const int count = kind == H5S_SIMPLE ? H5Sget_simple_extent_ndims(space.get()) : -1;
    if (count < 1 || count > kMaxDimensions || entry.type == ElementType::text) {
      refuse(entry.path, "its shape is not one that is written here");
    }
    std::array<hsize_t, kMaxDimensions> dimensions{};
    if (H5Sget_simple_extent_dims(space.get(), dimensions.data(), nullptr) != count) {
      refuse(entry.path, "its shape is damaged");
    }
    for (int i = 0; i < count; ++i) {
      const hsize_t n = dimensions[static_cast<std::size_t>(i)];
      if (n == 0 || n > image_.size()) refuse(entry.path, "a dimension is 0 or larger than the file");
      entry.shape.push_back(static_cast<std::int64_t>(n));
    }
  }

  const std::string& name_;
  std::span<std::byte> image_;
  std::vector<Entry> entries_;
  std::size_t objects_ = 0;
};

/// As HDF5 would accept it: names between slashes, none of them special.
bool is_path(std::string_view path) {
  if (!path.starts_with('/') || path.find('\0') != std::string_view::npos) return false;
  for (std::size_t at = 0; at != std::string_view::npos;) {
    const std::size_t next = path.find('/', at + 1);
    const std::string_view name = path.substr(at + 1, next == std::string_view::npos ? next : next - at - 1);
    if (name.empty() || name == "." || name == "..") return false;
    at = next;
  }
  return true;
}

/// What the index of a verified file says.
std::vector<Entry> entries_of(VerifiedImage& content, const std::string& name) {
  std::vector<Entry> entries;
  auto extents = parse_index(content.index, content.trailer.image_bytes, name);
  entries.reserve(extents.size());
  for (Extent& extent : extents) {
    if (!is_path(extent.path)) {
      throw DataError(
          fmt::format("{} is not a checkpoint that is read here: its index has a path that is none", name));
    }
    entries.push_back(
        {std::move(extent.path), extent.type, std::move(extent.shape), content.bytes.data() + extent.offset});
  }
  return entries;
}

/// What a verified file holds.
std::vector<Entry> structure_of(VerifiedImage& content, const std::string& name) {
  return content.index.empty() ? StructureReader(name, content.bytes.bytes()).read()
                               : entries_of(content, name);
}

/// Puts the tensors together that lie in pieces.
class Pieces {
 public:
  Pieces(const std::string& name, std::vector<PageBuffer>& memory) : name_(name), memory_(memory) {}

  /// `path` is that of a piece: "/model/dense/weight@4096".
  void add(const Entry& piece) {
    const std::size_t mark = piece.path.rfind('@');
    const std::string digits = piece.path.substr(mark + 1);
    std::uint64_t first = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), first);
    if (error != std::errc{} || end != digits.data() + digits.size() || piece.shape.size() != 1) {
      refuse(piece.path, "it is no piece of a tensor");
    }
    if (!pieces_[piece.path.substr(0, mark)].emplace(first, piece).second) {
      refuse(piece.path, "it is there twice");
    }
  }

  Entry join(const std::string& path, Shape shape) {
    const auto found = pieces_.find(path);
    if (found == pieces_.end()) refuse(path, "it should lie in pieces and has none");
    std::uint64_t elements = 0;
    const ElementType type = found->second.begin()->second.type;
    for (const auto& [first, piece] : found->second) {
      if (first != elements || piece.type != type) refuse(piece.path, "the pieces do not follow each other");
      elements += static_cast<std::uint64_t>(piece.shape.front());
    }
    // At most what is in the files: no product can wrap before it is larger.
    std::uint64_t wanted = 1;
    for (const std::int64_t n : shape) {
      if (n < 1 || static_cast<std::uint64_t>(n) > elements / wanted)
        refuse(path, "its pieces do not fill it");
      wanted *= static_cast<std::uint64_t>(n);
    }
    if (wanted != elements) refuse(path, "its pieces do not fill it");
    PageBuffer& values = memory_.emplace_back(static_cast<std::size_t>(elements) * size_in_bytes(type));
    std::size_t at = 0;
    for (const auto& [first, piece] : found->second) {
      std::memcpy(values.data() + at, piece.data, piece.bytes());
      at += piece.bytes();
    }
    pieces_.erase(found);
    return {path, type, std::move(shape), values.data()};
  }

  void require_none() const {
    if (!pieces_.empty()) refuse(pieces_.begin()->first, "it lies in pieces, and has no shape");
  }

 private:
  [[noreturn]] void refuse(const std::string& path, const std::string& what) const {
    throw DataError(fmt::format("{} is not a checkpoint that is read here: '{}': {}", name_, path, what));
  }

  const std::string& name_;
  std::vector<PageBuffer>& memory_;
  std::map<std::string, std::map<std::uint64_t, Entry>> pieces_;  // by path, then by the first element
};

bool may_lie_in_a_shard(const std::string& path) {
  return std::ranges::any_of(std::array<std::string_view, 4>{"/model/", "/slots/", "/buffers/", kHooksFolder},
                             [&](std::string_view folder) { return path.starts_with(folder); });
}

constexpr std::string_view kConfigFolder = "/config/";

std::string shown(const Entry& setting) {
  const std::string text(reinterpret_cast<const char*>(setting.data), setting.bytes());
  return "'" + (text.size() > kMaxSettingShown ? text.substr(0, kMaxSettingShown) + "..." : text) + "'";
}

std::string described(const Entry& entry) {
  return std::string(to_string(entry.type)) + " " + to_string(entry.shape);
}

/// What differs between a checkpoint and the entries that it is to fill; null stands for a missing side.
class Differences {
 public:
  void add(const std::string& path, const Entry* stored, const Entry* wanted,
           const std::set<std::string>& allow_change) {
    if (path.starts_with(kConfigFolder)) {
      const std::string key = path.substr(kConfigFolder.size());
      (allow_change.contains(key) ? allowed_ : lines_).push_back(setting(key, stored, wanted));
      return;
    }
    if (path.starts_with(kHooksFolder)) {
      allowed_.push_back(fmt::format("'{}' is {}", path,
                                     stored == nullptr   ? "not in the checkpoint"
                                     : wanted == nullptr ? "of a hook or a node that this run does not have"
                                                         : described(*stored) + " in the checkpoint"));
      return;
    }
    other_model_ = true;
    if (stored == nullptr) {
      lines_.push_back(fmt::format("missing '{}' (the model expects {})", path, described(*wanted)));
    } else if (wanted == nullptr) {
      lines_.push_back(fmt::format("extra '{}' ({}; the model has none)", path, described(*stored)));
    } else {
      lines_.push_back(fmt::format("different '{}': {} (the model expects {})", path, described(*stored),
                                   described(*wanted)));
    }
  }

  void throw_if_any(const std::string& name) const {
    if (lines_.empty()) return;
    throw EnvironmentError(fmt::format(
        "checkpoint {} does not fit this run:\n  {}\n{}", name, fmt::join(lines_, "\n  "),
        other_model_
            ? "restore with the model that wrote it, or start a new run in another directory"
            : "run with the settings that wrote it, allow a change by name (--allow_change NAME), or "
              "start a new run in another directory"));
  }

  const std::vector<std::string>& allowed() const noexcept { return allowed_; }

 private:
  static std::string setting(const std::string& key, const Entry* stored, const Entry* wanted) {
    return fmt::format("setting '{}' was {} (this run: {})", key,
                       stored == nullptr ? "not set" : shown(*stored),
                       wanted == nullptr ? "not set" : shown(*wanted));
  }

  std::vector<std::string> lines_;
  std::vector<std::string> allowed_;
  bool other_model_ = false;
};

bool same_kind(const Entry& stored, const Entry& wanted) {
  if (stored.type != wanted.type || stored.shape != wanted.shape) return false;
  return !wanted.path.starts_with(kConfigFolder) ||
         std::memcmp(stored.data, wanted.data, wanted.bytes()) == 0;
}

}  // namespace

CheckpointFile::CheckpointFile(Directory& directory, const std::string& name, const MacKey* key,
                               std::uint64_t limit)
    : CheckpointFile(*directory.open(name), directory, name, key, limit) {}

CheckpointFile::CheckpointFile(ReadableFile& file, Directory& shards, const std::string& name,
                               const MacKey* key, std::uint64_t limit)
    : name_(name), content_(read_verified(file, name, limit, key)) {
  read_structure();
  if (!shard_records(entries_, name_).empty()) join(shards, key, limit);
}

CheckpointFile::CheckpointFile(ReadableFile& file, const std::string& name, const MacKey* key,
                               std::uint64_t limit)
    : name_(name), content_(read_verified(file, name, limit, key)) {
  read_structure();
  if (!shard_records(entries_, name_).empty()) {
    throw DataError(name_ + " is a manifest, whose values lie in shards; open it in its directory");
  }
}

CheckpointFile open_checkpoint_file(FileSystem& files, const std::filesystem::path& path, const MacKey* key) {
  const std::string name = path.filename().string();
  const auto file = files.open_file(path);
  // A directory that may be entered and not listed is no reason to refuse a file that needs no other.
  std::unique_ptr<Directory> folder;
  try {
    folder = files.open_directory(path.has_parent_path() ? path.parent_path() : ".");
  } catch (const FileError&) {
    return {*file, name, key};
  }
  return {*file, *folder, name, key};
}

/// Takes the entries of all shards for those of this file.
void CheckpointFile::join(Directory& directory, const MacKey* key, std::uint64_t limit) {
  own_entries_ = std::move(entries_);
  entries_.clear();
  const auto refuse = [&](const std::string& what) {
    throw DataError(fmt::format("{} is not whole: {}", name_, what));
  };
  Pieces pieces(name_, joined_);
  const auto records = shard_records(own_entries_, name_);
  shards_.reserve(records.size());
  for (const ShardRecord& record : records) {
    std::unique_ptr<ReadableFile> file;
    try {
      file = directory.open(record.name);
    } catch (const FileError& error) {
      if (error.code() != ENOENT) throw;
      refuse(fmt::format("its shard {} is not there", record.name));
    }
    if (file->size() != record.bytes) {
      refuse(fmt::format("its shard {} has {} bytes, and should have {}", record.name, file->size(),
                         record.bytes));
    }
    VerifiedImage& shard = shards_.emplace_back(read_verified(*file, record.name, limit, key));
    if (shard.trailer.digest.hex() != record.digest || shard.trailer.step != content_.trailer.step ||
        shard.trailer.token != content_.trailer.token) {
      refuse(fmt::format("its shard {} is another file than the one it was saved with", record.name));
    }
    for (Entry& entry : structure_of(shard, record.name)) {
      if (!may_lie_in_a_shard(entry.path)) {
        throw DataError(fmt::format("{} is not a shard that is read here: '{}' has no place in one",
                                    record.name, entry.path));
      }
      if (entry.path.find('@') != std::string::npos) {
        pieces.add(entry);
      } else {
        entries_.push_back(std::move(entry));
      }
    }
    shard_names_.push_back(record.name);
    bytes_ += record.bytes;
  }
  for (const Entry& entry : own_entries_) {
    if (entry.path.starts_with(kCutFolder)) {
      if (entry.type != ElementType::i64 || entry.shape.size() != 1) refuse(entry.path + " is no shape");
      Shape shape(entry.bytes() / sizeof(std::int64_t));
      std::memcpy(shape.data(), entry.data, entry.bytes());
      entries_.push_back(pieces.join("/" + entry.path.substr(kCutFolder.size()), std::move(shape)));
    } else if (!entry.path.starts_with(kShardsFolder)) {
      entries_.push_back(entry);
    }
  }
  pieces.require_none();
  std::ranges::sort(entries_, {}, &Entry::path);
  const auto twice = std::ranges::adjacent_find(entries_, {}, &Entry::path);
  if (twice != entries_.end()) refuse(fmt::format("'{}' is there twice", twice->path));
}

std::vector<ShardRecord> manifest_shards(Directory& directory, const std::string& file, const MacKey* key) {
  VerifiedImage content = read_verified(*directory.open(file), file, CheckpointFile::kDefaultLimit, key);
  return shard_records(structure_of(content, file), file);
}

void CheckpointFile::read_structure() {
  entries_ = structure_of(content_, name_);
  bytes_ = content_.trailer.file_bytes;
  const Entry* step = find("/session/global_step");
  if (step == nullptr) return;
  std::int64_t value = 0;
  if (step->type != ElementType::i64 || !step->shape.empty()) {
    throw DataError(name_ + " is not a checkpoint that is read here: '/session/global_step' is no number");
  }
  std::memcpy(&value, step->data, sizeof value);
  if (value != content_.trailer.step) {
    throw DataError(fmt::format("{} contradicts itself: it holds step {}, its trailer says {}", name_, value,
                                content_.trailer.step));
  }
}

void CheckpointFile::check_structure() const {
  const std::span image(content_.bytes.data(), content_.bytes.size());
  const std::vector<Entry> found = StructureReader(name_, image).read();
  const auto same = [](const Entry& left, const Entry& right) {
    return left.path == right.path && left.type == right.type && left.shape == right.shape &&
           left.data == right.data;
  };
  const std::vector<Entry>& own = shard_names_.empty() ? entries_ : own_entries_;
  const auto [here, there] = std::mismatch(own.begin(), own.end(), found.begin(), found.end(), same);
  if (here == own.end() && there == found.end()) return;
  throw DataError(fmt::format("{} contradicts itself: its index and its HDF5 structure differ at '{}'", name_,
                              here != own.end() ? here->path : there->path));
}

const Entry* CheckpointFile::find(std::string_view path) const noexcept {
  const auto found =
      std::lower_bound(entries_.begin(), entries_.end(), path,
                       [](const Entry& entry, std::string_view wanted) { return entry.path < wanted; });
  return found != entries_.end() && found->path == path ? &*found : nullptr;
}

void CheckpointFile::read(std::string_view path, std::span<std::byte> bytes) const {
  const Entry* entry = find(path);
  if (entry == nullptr || entry->bytes() != bytes.size()) {
    throw InternalError(fmt::format("{} has no '{}' of {} bytes", name_, path, bytes.size()));
  }
  std::memcpy(bytes.data(), entry->data, bytes.size());
}

std::vector<std::string> restore_into(const CheckpointFile& file, std::span<const Entry> entries,
                                      const std::set<std::string>& allow_change) {
  std::vector<const Entry*> by_path;
  by_path.reserve(entries.size());
  for (const Entry& wanted : entries) by_path.push_back(&wanted);
  std::sort(by_path.begin(), by_path.end(),
            [](const Entry* left, const Entry* right) { return left->path < right->path; });
  Differences differences;
  std::vector<std::pair<const Entry*, const Entry*>> copies;  // stored, wanted
  copies.reserve(entries.size());
  auto wanted = by_path.begin();
  const auto& all = file.entries();
  for (auto stored = all.begin(); stored != all.end() || wanted != by_path.end();) {
    const bool from_file =
        stored != all.end() && (wanted == by_path.end() || stored->path <= (*wanted)->path);
    const bool from_model =
        wanted != by_path.end() && (stored == all.end() || (*wanted)->path <= stored->path);
    const Entry* left = from_file ? &*stored : nullptr;
    const Entry* right = from_model ? *wanted : nullptr;
    if (left == nullptr || right == nullptr || !same_kind(*left, *right)) {
      differences.add(left != nullptr ? left->path : right->path, left, right, allow_change);
    } else if (!left->path.starts_with(kConfigFolder)) {
      copies.emplace_back(left, right);
    }
    if (from_file) ++stored;
    if (from_model) ++wanted;
  }
  differences.throw_if_any(file.name());
  for (const auto& [from, to] : copies) std::memcpy(to->data, from->data, to->bytes());
  return differences.allowed();
}

std::size_t restore_part(const CheckpointFile& file, std::span<const Entry> entries,
                         const std::vector<std::string>& names) {
  if (names.empty()) throw UsageError("no tensor is named; list what is to be taken from the checkpoint");
  std::map<std::string_view, const Entry*> chosen;
  std::vector<std::string> problems;
  for (const std::string& name : names) {
    if (!name.starts_with("/model/") && !name.starts_with("/slots/") && !name.starts_with("/buffers/")) {
      throw UsageError(
          fmt::format("'{}' is no tensor; names begin with /model/, /slots/ or /buffers/", name));
    }
    bool found = false;
    for (const Entry& wanted : entries) {
      if (wanted.path != name && !(name.ends_with('/') && wanted.path.starts_with(name))) continue;
      found = true;
      if (!chosen.emplace(wanted.path, &wanted).second) continue;
      const Entry* stored = file.find(wanted.path);
      if (stored == nullptr) {
        problems.push_back(
            fmt::format("missing '{}' (the model expects {})", wanted.path, described(wanted)));
      } else if (!same_kind(*stored, wanted)) {
        problems.push_back(fmt::format("different '{}': {} (the model expects {})", wanted.path,
                                       described(*stored), described(wanted)));
      }
    }
    if (!found) problems.push_back(fmt::format("the model has no '{}'", name));
  }
  if (!problems.empty()) {
    throw EnvironmentError(fmt::format("checkpoint {} cannot give what is asked for:\n  {}", file.name(),
                                       fmt::join(problems, "\n  ")));
  }
  for (const auto& [path, wanted] : chosen) {
    std::memcpy(wanted->data, file.find(path)->data, wanted->bytes());
  }
  return chosen.size();
}

}  // namespace lockstep
