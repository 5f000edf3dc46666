#include <algorithm>
#include <cmath>
#include <cstring>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/trailer.hpp>

#include "trailer_layout.hpp"

namespace lockstep {
namespace {

template <class T>
void put(std::span<std::byte> bytes, std::size_t offset, const T& value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

}  // namespace

std::vector<std::byte> build_index(std::span<const Extent> extents) {
  std::vector<std::byte> index;
  const auto append = [&](const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::byte*>(data);
    index.insert(index.end(), bytes, bytes + size);
  };
  for (const Extent& extent : extents) {
    if (extent.path.size() > kMaxPathLength || extent.shape.size() > kMaxDimensions) {
      throw InternalError("a path or shape is too long for an index");
    }
    const auto type = static_cast<std::uint8_t>(extent.type);
    const auto dimensions = static_cast<std::uint8_t>(extent.shape.size());
    const auto length = static_cast<std::uint16_t>(extent.path.size());
    append(&extent.offset, sizeof extent.offset);
    append(&type, sizeof type);
    append(&dimensions, sizeof dimensions);
    append(&length, sizeof length);
    append(extent.shape.data(), extent.shape.size() * sizeof(std::int64_t));
    append(extent.path.data(), length);
  }
  return index;
}

TrailerWriter::TrailerWriter(std::span<const std::byte> index, const MacKey* key) : index_(index) {
  if (key != nullptr) mac_.emplace(*key);
}

void TrailerWriter::add(std::span<const std::byte> bytes) {
  hasher_.update(bytes);
  if (mac_) mac_->update(bytes);
  if (const auto filled = static_cast<std::size_t>(image_bytes_ % kBlockBytes); filled != 0) {
    const auto piece = bytes.first(std::min(bytes.size(), kBlockBytes - filled));
    checksums_.back() = crc32c(piece, checksums_.back());
    image_bytes_ += piece.size();
    bytes = bytes.subspan(piece.size());
  }
  const std::size_t known = checksums_.size();
  checksums_.resize(known + static_cast<std::size_t>(blocks_of(bytes.size())));
  crc32c_blocks(bytes, kBlockBytes, std::span(checksums_).subspan(known));
  image_bytes_ += bytes.size();
}

std::vector<std::byte> TrailerWriter::finish(const Stamp& stamp) {
  const std::size_t table_bytes = checksums_.size() * kChecksumBytes;
  const std::size_t footer_at = table_bytes + index_.size();
  std::vector<std::byte> trailer(footer_at + kFooterBytes);
  std::memcpy(trailer.data(), checksums_.data(), table_bytes);
  std::ranges::copy(index_, trailer.begin() + static_cast<std::ptrdiff_t>(table_bytes));
  const auto footer = std::span(trailer).subspan(footer_at);
  put(footer, kImageBytesAt, image_bytes_);
  put(footer, kStepAt, stamp.step);
  put(footer, kTokenAt, stamp.token);
  put(footer, kSavedAtAt, static_cast<std::int64_t>(std::llround(stamp.saved_at * 1000.0)));
  put(footer, kBlockBytesAt, static_cast<std::uint32_t>(kBlockBytes));
  put(footer, kBlockCountAt, static_cast<std::uint32_t>(checksums_.size()));
  put(footer, kIndexBytesAt, std::uint64_t{index_.size()});
  if (stamp.metric.name.size() > Metric::kMaxName) throw InternalError("the name of a metric is too long");
  if (stamp.metric.known()) put(footer, kMetricAt, stamp.metric.value);
  std::memcpy(footer.data() + kMetricNameAt, stamp.metric.name.data(), stamp.metric.name.size());
  put(footer, kSignedAt, std::uint32_t{mac_ ? 1U : 0U});
  const std::span<const std::byte> all(trailer);
  put(footer, kTableCrcAt, crc32c(all.first(footer_at + kTableCrcAt)));
  if (mac_) {
    mac_->update(all.first(footer_at + kCodeAt));
    const Mac::Code code = mac_->finish();
    std::memcpy(footer.data() + kCodeAt, code.data(), code.size());
  }
  hasher_.update(all.first(footer_at + kDigestAt));
  digest_ = hasher_.digest();
  std::memcpy(footer.data() + kDigestAt, digest_.bytes.data(), digest_.bytes.size());
  put(footer, kVersionAt, kVersion);
  put(footer, kReservedAt, std::uint32_t{0});
  std::memcpy(footer.data() + kMagicAt, kMagic.data(), kMagic.size());
  return trailer;
}

std::vector<std::byte> build_trailer(std::span<const std::byte> image, const Stamp& stamp,
                                     std::span<const std::byte> index, const MacKey* key) {
  TrailerWriter writer(index, key);
  writer.add(image);
  return writer.finish(stamp);
}

}  // namespace lockstep
