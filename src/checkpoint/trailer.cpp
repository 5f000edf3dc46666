#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/trailer.hpp>

// The reader trusts nothing: the footer's fields are used only after they were checked against the size of
// the file, and the image is handed on only after every block, the table and the digest agree.

namespace lockstep {
namespace {

static_assert(std::endian::native == std::endian::little, "fields are copied as they lie in memory");

constexpr std::size_t kBlockBytes = std::size_t{1} << 20;
constexpr std::uint32_t kVersion = 1;
constexpr std::array<char, 8> kMagic = {'L', 'K', 'S', 'T', 'P', 'C', 'K', '\n'};
constexpr std::size_t kChecksumBytes = sizeof(std::uint32_t);

// Offsets of the footer's fields from its start.
constexpr std::size_t kImageBytesAt = 0;
constexpr std::size_t kStepAt = 8;
constexpr std::size_t kTokenAt = 16;
constexpr std::size_t kSavedAtAt = 24;  // milliseconds since 1970
constexpr std::size_t kBlockBytesAt = 32;
constexpr std::size_t kBlockCountAt = 36;
constexpr std::size_t kReservedAt = 40;  // eight zeros
constexpr std::size_t kTableCrcAt = 48;  // CRC32C of the table and the footer up to here
constexpr std::size_t kDigestAt = 52;
constexpr std::size_t kVersionAt = 68;
constexpr std::size_t kMagicAt = 72;
constexpr std::size_t kFooterBytes = 80;

template <class T>
void put(std::span<std::byte> bytes, std::size_t offset, const T& value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

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

std::uint64_t blocks_of(std::uint64_t image_bytes) noexcept {
  return image_bytes / kBlockBytes + (image_bytes % kBlockBytes != 0 ? 1 : 0);
}

/// A trailer that is whole, with the bytes that the digest covers.
struct Parsed {
  Trailer trailer;
  std::vector<std::byte> bytes;  // checksums, then footer
  std::size_t blocks = 0;

  std::uint32_t checksum(std::size_t block) const {
    return get<std::uint32_t>(bytes, block * kChecksumBytes);
  }
};

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

  // Sizes: nothing is allocated or read by them before they fit the size of the file.
  const auto image_bytes = get<std::uint64_t>(footer, kImageBytesAt);
  const auto block_count = get<std::uint32_t>(footer, kBlockCountAt);
  if (get<std::uint32_t>(footer, kBlockBytesAt) != kBlockBytes) {
    fail(name, footer_at + kBlockBytesAt, "the block size is not 1 MiB");
  }
  if (image_bytes > footer_at || image_bytes == 0) {
    fail(name, footer_at + kImageBytesAt,
         fmt::format("the image should have {} bytes, the file has {}", image_bytes, size));
  }
  if (block_count != blocks_of(image_bytes) ||
      footer_at - image_bytes != std::uint64_t{block_count} * kChecksumBytes) {
    fail(name, footer_at + kBlockCountAt,
         fmt::format("{} checksums do not fit an image of {} bytes in a file of {}", block_count, image_bytes,
                     size));
  }

  Parsed parsed;
  parsed.blocks = block_count;
  parsed.bytes.resize(parsed.blocks * kChecksumBytes + kFooterBytes);
  read_exactly(file, name, image_bytes, parsed.bytes);
  const std::span<const std::byte> all = parsed.bytes;
  const auto own = all.last(kFooterBytes);
  const auto covered = all.first(all.size() - kFooterBytes + kTableCrcAt);
  if (std::memcmp(own.data(), footer.data(), footer.size()) != 0) {
    fail(name, footer_at, "it changes while it is read");
  }
  if (crc32c(covered) != get<std::uint32_t>(own, kTableCrcAt)) {
    fail(name, image_bytes, "the table of checksums does not match its own checksum");
  }
  parsed.trailer.image_bytes = image_bytes;
  parsed.trailer.file_bytes = size;
  parsed.trailer.step = get<std::int64_t>(own, kStepAt);
  parsed.trailer.token = get<std::uint64_t>(own, kTokenAt);
  parsed.trailer.saved_at = static_cast<double>(get<std::int64_t>(own, kSavedAtAt)) / 1000.0;
  std::memcpy(parsed.trailer.digest.bytes.data(), own.data() + kDigestAt, parsed.trailer.digest.bytes.size());
  if (parsed.trailer.step < 0) fail(name, footer_at + kStepAt, "the step is negative");
  return parsed;
}

/// Checks the image block by block; `place(block)` gives where a block is to be read to.
template <class Place>
void check_image(ReadableFile& file, const std::string& name, const Parsed& parsed, Place place) {
  Hasher hasher;
  for (std::size_t block = 0; block < parsed.blocks; ++block) {
    const std::uint64_t offset = std::uint64_t{block} * kBlockBytes;
    const auto length =
        static_cast<std::size_t>(std::min<std::uint64_t>(kBlockBytes, parsed.trailer.image_bytes - offset));
    const std::span<std::byte> bytes(place(block), length);
    read_exactly(file, name, offset, bytes);
    if (crc32c(bytes) != parsed.checksum(block)) {
      fail(name, offset, fmt::format("the {} bytes from here do not match their checksum", length));
    }
    hasher.update(bytes);
  }
  const std::span<const std::byte> trailer = parsed.bytes;
  hasher.update(trailer.first(trailer.size() - kFooterBytes + kDigestAt));
  if (hasher.digest() != parsed.trailer.digest) {
    fail(name, parsed.trailer.file_bytes - kFooterBytes + kDigestAt,
         "the digest of the file is another, although every checksum fits");
  }
}

}  // namespace

void TrailerWriter::add(std::span<const std::byte> bytes) {
  hasher_.update(bytes);
  while (!bytes.empty()) {
    const auto filled = static_cast<std::size_t>(image_bytes_ % kBlockBytes);
    if (filled == 0) checksums_.push_back(0);
    const auto piece = bytes.first(std::min(bytes.size(), kBlockBytes - filled));
    checksums_.back() = crc32c(piece, checksums_.back());
    image_bytes_ += piece.size();
    bytes = bytes.subspan(piece.size());
  }
}

std::vector<std::byte> TrailerWriter::finish(std::int64_t step, std::uint64_t token, double saved_at) {
  const std::size_t table_bytes = checksums_.size() * kChecksumBytes;
  std::vector<std::byte> trailer(table_bytes + kFooterBytes);
  std::memcpy(trailer.data(), checksums_.data(), table_bytes);
  const auto footer = std::span(trailer).subspan(table_bytes);
  put(footer, kImageBytesAt, image_bytes_);
  put(footer, kStepAt, step);
  put(footer, kTokenAt, token);
  put(footer, kSavedAtAt, static_cast<std::int64_t>(std::llround(saved_at * 1000.0)));
  put(footer, kBlockBytesAt, static_cast<std::uint32_t>(kBlockBytes));
  put(footer, kBlockCountAt, static_cast<std::uint32_t>(checksums_.size()));
  put(footer, kReservedAt, std::uint64_t{0});
  put(footer, kTableCrcAt, crc32c(std::span(trailer).first(table_bytes + kTableCrcAt)));
  hasher_.update(std::span<const std::byte>(trailer).first(table_bytes + kDigestAt));
  digest_ = hasher_.digest();
  std::memcpy(footer.data() + kDigestAt, digest_.bytes.data(), digest_.bytes.size());
  put(footer, kVersionAt, kVersion);
  std::memcpy(footer.data() + kMagicAt, kMagic.data(), kMagic.size());
  return trailer;
}

std::vector<std::byte> build_trailer(std::span<const std::byte> image, std::int64_t step, std::uint64_t token,
                                     double saved_at) {
  TrailerWriter writer;
  writer.add(image);
  return writer.finish(step, token, saved_at);
}

Trailer read_trailer(ReadableFile& file, const std::string& name) {
  return parse(file, name).trailer;
}

Trailer verify_file(ReadableFile& file, const std::string& name) {
  const Parsed parsed = parse(file, name);
  const auto block = std::make_unique_for_overwrite<std::byte[]>(kBlockBytes);
  check_image(file, name, parsed, [&](std::size_t) { return block.get(); });
  return parsed.trailer;
}

VerifiedImage read_verified(ReadableFile& file, const std::string& name, std::uint64_t limit) {
  const Parsed parsed = parse(file, name);
  if (parsed.trailer.image_bytes > limit) {
    throw DataError(fmt::format("{} holds an image of {} bytes (at most {} are accepted)", name,
                                parsed.trailer.image_bytes, limit));
  }
  // Not touched before it is read into: a sparse file that claims a lot costs no memory until it is found
  // out.
  VerifiedImage result{parsed.trailer, std::make_unique_for_overwrite<std::byte[]>(
                                           static_cast<std::size_t>(parsed.trailer.image_bytes))};
  check_image(file, name, parsed,
              [&](std::size_t block) { return result.bytes.get() + block * kBlockBytes; });
  return result;
}

}  // namespace lockstep
