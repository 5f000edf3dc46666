#include <algorithm>
#include <array>
#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/trailer.hpp>

#include "trailer_layout.hpp"

// The reader trusts nothing: the footer's fields are used only after they were checked against the size of
// the file, and the image is handed on only after every block, the table and the digest agree.

namespace lockstep {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{256} << 10;  // stays in the second-level cache between uses

template <class T>
T get(std::span<const std::byte> bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

[[noreturn]] void fail(const std::string& name, std::uint64_t offset, const std::string& what) {
  throw DataError(fmt::format("{} is damaged at offset {}: {}", name, offset, what));
}

void read_exactly(ReadableFile& file, const std::string& name, std::uint64_t offset,
                  std::span<std::byte> bytes) {
  const std::size_t count = file.read(offset, bytes);
  if (count != bytes.size()) fail(name, offset + count, "the file ends here, earlier than its size says");
}

/// A trailer that is whole, with the bytes that the digest covers.
struct Parsed {
  Trailer trailer;
  std::vector<std::byte> bytes;  // checksums, index, footer
  std::size_t blocks = 0;

  std::span<const std::byte> all() const noexcept { return bytes; }
  std::span<const std::byte> footer() const noexcept { return all().last(kFooterBytes); }
  std::span<const std::byte> before(std::size_t field) const noexcept {
    return all().first(bytes.size() - kFooterBytes + field);
  }
  std::span<const std::byte> index() const noexcept { return before(0).subspan(blocks * kChecksumBytes); }
  std::uint32_t checksum(std::size_t block) const {
    return get<std::uint32_t>(bytes, block * kChecksumBytes);
  }
};

// A record of the index: offset (8 bytes), type (1), dimensions (1), length of the path (2), each dimension
// (8), the path.
constexpr std::size_t kRecordBytes = 12;
constexpr std::size_t kMaxExtents = 1'000'000;

/// Takes the next record from `index`; nullopt when it is none.
std::optional<Extent> take_extent(std::span<const std::byte>& index, std::uint64_t image_bytes) {
  if (index.size() < kRecordBytes) return std::nullopt;
  Extent extent;
  extent.offset = get<std::uint64_t>(index, 0);
  const auto type = get<std::uint8_t>(index, 8);
  const std::size_t dimensions = get<std::uint8_t>(index, 9);
  const std::size_t name = get<std::uint16_t>(index, 10);
  const std::size_t length = kRecordBytes + dimensions * sizeof(std::int64_t) + name;
  if (type > static_cast<std::uint8_t>(ElementType::text) || dimensions > kMaxDimensions || name == 0 ||
      name > kMaxPathLength || length > index.size() || extent.offset > image_bytes) {
    return std::nullopt;
  }
  extent.type = static_cast<ElementType>(type);
  std::uint64_t bytes = size_in_bytes(extent.type);
  for (std::size_t i = 0; i < dimensions; ++i) {
    const auto n = get<std::int64_t>(index, kRecordBytes + i * sizeof(std::int64_t));
    // Every product is at most the image, so that it cannot wrap.
    if (n < 1 || static_cast<std::uint64_t>(n) > image_bytes / bytes) return std::nullopt;
    bytes *= static_cast<std::uint64_t>(n);
    extent.shape.push_back(n);
  }
  if (bytes > image_bytes - extent.offset) return std::nullopt;
  if (extent.type == ElementType::text && dimensions != 1) return std::nullopt;
  extent.path.assign(reinterpret_cast<const char*>(index.data()) + length - name, name);
  // Paths are shown to people, on terminals.
  if (std::ranges::any_of(extent.path, [](unsigned char c) { return c < ' ' || c == 0x7f; }))
    return std::nullopt;
  index = index.subspan(length);
  return extent;
}

std::uint64_t bytes_of(const Extent& extent) {
  return static_cast<std::uint64_t>(element_count(extent.shape)) * size_in_bytes(extent.type);
}

/// What lies in a part of the image, in words; empty when the index does not say.
std::string contents(std::span<const std::byte> index, std::uint64_t image_bytes, std::uint64_t offset,
                     std::uint64_t length) {
  constexpr std::size_t kMostNamed = 3;
  std::vector<std::string> names;
  std::size_t more = 0;
  while (!index.empty()) {
    auto extent = take_extent(index, image_bytes);
    if (!extent) return "";
    if (extent->offset >= offset + length) continue;
    if (extent->offset < offset && bytes_of(*extent) <= offset - extent->offset) continue;
    if (names.size() < kMostNamed) {
      names.push_back(std::move(extent->path));
    } else {
      ++more;
    }
  }
  if (names.empty()) return " (the structure of the file)";
  return fmt::format(" (in '{}'{})", fmt::join(names, "', '"),
                     more == 0 ? "" : fmt::format(" and {} more", more));
}

std::string text_at(std::span<const std::byte> bytes, std::size_t offset, std::size_t length) {
  std::string text(reinterpret_cast<const char*>(bytes.data()) + offset, length);
  text.resize(std::min(text.find('\0'), text.size()));
  return text;
}

Parsed parse(ReadableFile& file, const std::string& name) {
  const std::uint64_t size = file.size();
  if (size < kFooterBytes) {
    fail(name, size, fmt::format("{} bytes are fewer than any checkpoint has; it was cut short", size));
  }
  const std::uint64_t footer_at = size - kFooterBytes;
  std::array<std::byte, kFooterBytes> footer{};
  read_exactly(file, name, footer_at, footer);
  if (std::memcmp(footer.data() + kMagicAt, kMagic.data(), kMagic.size()) != 0) {
    fail(name, footer_at + kMagicAt,
         fmt::format("it does not end with the mark of a checkpoint; it was cut short (it has {} bytes), "
                     "continued, or is something else",
                     size));
  }
  if (const auto version = get<std::uint32_t>(footer, kVersionAt); version != kVersion) {
    fail(name, footer_at + kVersionAt,
         fmt::format("format version {} (this program reads {})", version, kVersion));
  }
  // The one field that nothing covers.
  if (get<std::uint32_t>(footer, kReservedAt) != 0) fail(name, footer_at + kReservedAt, "it should be zero");

  // Sizes: nothing is allocated or read by them before they fit the size of the file.
  const auto image_bytes = get<std::uint64_t>(footer, kImageBytesAt);
  const auto index_bytes = get<std::uint64_t>(footer, kIndexBytesAt);
  const auto block_count = get<std::uint32_t>(footer, kBlockCountAt);
  if (get<std::uint32_t>(footer, kBlockBytesAt) != kBlockBytes) {
    fail(name, footer_at + kBlockBytesAt, fmt::format("the block size is not {}", kBlockBytes));
  }
  if (image_bytes > footer_at || image_bytes == 0) {
    fail(name, footer_at + kImageBytesAt,
         fmt::format("the image should have {} bytes, the file has {}", image_bytes, size));
  }
  if (index_bytes > footer_at - image_bytes || block_count != blocks_of(image_bytes) ||
      footer_at - image_bytes - index_bytes != std::uint64_t{block_count} * kChecksumBytes) {
    fail(name, footer_at + kBlockCountAt,
         fmt::format("{} checksums and an index of {} bytes do not fit an image of {} bytes in a file of {}",
                     block_count, index_bytes, image_bytes, size));
  }

  Parsed parsed;
  parsed.blocks = block_count;
  parsed.bytes.resize(static_cast<std::size_t>(size - image_bytes));
  read_exactly(file, name, image_bytes, parsed.bytes);
  const auto own = parsed.footer();
  if (std::memcmp(own.data(), footer.data(), footer.size()) != 0) {
    fail(name, footer_at, "it changes while it is read");
  }
  if (crc32c(parsed.before(kTableCrcAt)) != get<std::uint32_t>(own, kTableCrcAt)) {
    fail(name, image_bytes, "the table of checksums, or what follows it, does not match its own checksum");
  }
  Trailer& trailer = parsed.trailer;
  trailer.image_bytes = image_bytes;
  trailer.file_bytes = size;
  trailer.step = get<std::int64_t>(own, kStepAt);
  trailer.token = get<std::uint64_t>(own, kTokenAt);
  trailer.saved_at = static_cast<double>(get<std::int64_t>(own, kSavedAtAt)) / 1000.0;
  trailer.metric.name = text_at(own, kMetricNameAt, Metric::kMaxName);
  if (trailer.metric.known()) trailer.metric.value = get<double>(own, kMetricAt);
  trailer.is_signed = get<std::uint32_t>(own, kSignedAt) == 1;
  std::memcpy(trailer.digest.bytes.data(), own.data() + kDigestAt, trailer.digest.bytes.size());
  if (trailer.step < 0) fail(name, footer_at + kStepAt, "the step is negative");
  return parsed;
}

/// Checks the image piece by piece; `place(offset)` gives where a piece is to be read to.
template <class Place>
void check_image(ReadableFile& file, const std::string& name, const Parsed& parsed, const MacKey* key,
                 Place place) {
  const std::uint64_t footer_at = parsed.trailer.file_bytes - kFooterBytes;
  if (key != nullptr && !parsed.trailer.is_signed) {
    throw DataError(fmt::format("{} is not signed, and a key was given; nobody knows who wrote it", name));
  }
  std::optional<Mac> mac;
  if (key != nullptr) mac.emplace(*key);
  Hasher hasher;
  std::vector<std::uint32_t> found(kPieceBytes / kBlockBytes);
  file.expect_reading(0);
  for (std::uint64_t at = 0; at < parsed.trailer.image_bytes; at += kPieceBytes) {
    const auto length =
        static_cast<std::size_t>(std::min<std::uint64_t>(kPieceBytes, parsed.trailer.image_bytes - at));
    const std::span<std::byte> bytes(place(at), length);
    read_exactly(file, name, at, bytes);
    found.resize(static_cast<std::size_t>(blocks_of(length)));
    crc32c_blocks(bytes, kBlockBytes, found);
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (found[i] == parsed.checksum(static_cast<std::size_t>(at / kBlockBytes) + i)) continue;
      const std::uint64_t offset = at + i * kBlockBytes;
      const std::size_t block = std::min(kBlockBytes, length - i * kBlockBytes);
      fail(name, offset,
           fmt::format("the {} bytes from here{} do not match their checksum", block,
                       contents(parsed.index(), parsed.trailer.image_bytes, offset, block)));
    }
    hasher.update(bytes);
    if (mac) mac->update(bytes);
  }
  hasher.update(parsed.before(kDigestAt));
  if (hasher.digest() != parsed.trailer.digest) {
    fail(name, footer_at + kDigestAt, "the digest of the file is another, although every checksum fits");
  }
  if (!mac) return;
  mac->update(parsed.before(kCodeAt));
  Mac::Code code;
  std::memcpy(code.data(), parsed.footer().data() + kCodeAt, code.size());
  if (!Mac::equal(mac->finish(), code)) {
    throw DataError(fmt::format("{} was signed with another key, or changed by somebody without it", name));
  }
}

}  // namespace

std::vector<Extent> parse_index(std::span<const std::byte> index, std::uint64_t image_bytes,
                                const std::string& name) {
  std::vector<Extent> extents;
  const std::size_t size = index.size();
  while (!index.empty()) {
    auto extent = take_extent(index, image_bytes);
    if (!extent || extents.size() == kMaxExtents) {
      throw DataError(
          fmt::format("{} is not a checkpoint that is read here: record {} of its index, {} bytes "
                      "into it, is none",
                      name, extents.size(), size - index.size()));
    }
    extents.push_back(std::move(*extent));
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& left, const Extent& right) { return left.path < right.path; });
  const auto twice =
      std::adjacent_find(extents.begin(), extents.end(),
                         [](const Extent& left, const Extent& right) { return left.path == right.path; });
  if (twice != extents.end()) {
    throw DataError(
        fmt::format("{} is not a checkpoint that is read here: its index has '{}' twice", name, twice->path));
  }
  return extents;
}

Trailer read_trailer(ReadableFile& file, const std::string& name) {
  return parse(file, name).trailer;
}

std::vector<std::byte> read_index(ReadableFile& file, const std::string& name) {
  const Parsed parsed = parse(file, name);
  return {parsed.index().begin(), parsed.index().end()};
}

Trailer verify_file(ReadableFile& file, const std::string& name, const MacKey* key) {
  const Parsed parsed = parse(file, name);
  const PageBuffer piece(kPieceBytes);
  check_image(file, name, parsed, key, [&](std::uint64_t) { return piece.data(); });
  return parsed.trailer;
}

VerifiedImage read_verified(ReadableFile& file, const std::string& name, std::uint64_t limit,
                            const MacKey* key) {
  const Parsed parsed = parse(file, name);
  if (parsed.trailer.image_bytes > limit) {
    throw DataError(fmt::format("{} holds an image of {} bytes (at most {} are accepted)", name,
                                parsed.trailer.image_bytes, limit));
  }
  // Not touched before it is read into: a sparse file that claims a lot costs no memory until it is found
  // out.
  VerifiedImage result{parsed.trailer,
                       PageBuffer(static_cast<std::size_t>(parsed.trailer.image_bytes)),
                       {parsed.index().begin(), parsed.index().end()}};
  check_image(file, name, parsed, key, [&](std::uint64_t offset) { return result.bytes.data() + offset; });
  return result;
}

}  // namespace lockstep
