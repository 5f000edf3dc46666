#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include <fmt/format.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/image.hpp>
#include <lockstep/checkpoint/trailer.hpp>

#include "image_layout.hpp"

namespace lockstep {
namespace {

// Copying and looking for what is not finite is one pass: training waits for it, and memory is what limits
// it. The copy goes past the caches, as memcpy's does for large sizes: a tensor alone is seldom large, the
// whole is.

constexpr std::uint32_t kExponent32 = 0x7f800000;
constexpr std::uint32_t kExponent64 = 0x7ff00000;  // of the upper half

/// Copies words of 32 bits; true when none has all bits of its exponent set. An exponent of 0 stands for
/// words that have none.
bool copy_words(const std::byte* from, std::byte* to, std::size_t words, std::uint32_t even_exponent,
                std::uint32_t odd_exponent) noexcept {
  std::uint32_t bad = 0;
  std::size_t i = 0;
#if defined(__SSE2__)
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof(__m128i) == 0) {
    const __m128i exponent = _mm_set_epi32(static_cast<int>(odd_exponent), static_cast<int>(even_exponent),
                                           static_cast<int>(odd_exponent), static_cast<int>(even_exponent));
    // A word without an exponent is compared with what it cannot be.
    const __m128i none = _mm_cmpeq_epi32(exponent, _mm_setzero_si128());
    __m128i found = _mm_setzero_si128();
    const auto copy = [&](std::size_t at) {
      const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at * 4));
      found = _mm_or_si128(found, _mm_cmpeq_epi32(_mm_and_si128(value, exponent), exponent));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + at * 4), value);
    };
    for (; i + 16 <= words; i += 16) {
      copy(i);
      copy(i + 4);
      copy(i + 8);
      copy(i + 12);
    }
    bad = static_cast<std::uint32_t>(_mm_movemask_epi8(_mm_andnot_si128(none, found)));
  }
#endif
  for (; i < words; ++i) {
    std::uint32_t word;
    std::memcpy(&word, from + i * 4, 4);
    const std::uint32_t exponent = i % 2 == 0 ? even_exponent : odd_exponent;
    bad |= static_cast<std::uint32_t>(exponent != 0 && (word & exponent) == exponent);
    std::memcpy(to + i * 4, &word, 4);
  }
  return bad == 0;
}

/// Copies an entry; false when it has a number that is not finite.
bool copy_numbers(ElementType type, const std::byte* from, std::byte* to, std::size_t bytes) noexcept {
  switch (type) {
    case ElementType::f32:
      return copy_words(from, to, bytes / 4, kExponent32, kExponent32);
    case ElementType::f64:
      return copy_words(from, to, bytes / 4, 0, kExponent64);
    case ElementType::i32:
    case ElementType::i64:
    case ElementType::u8:
    case ElementType::text:
      break;
  }
  std::memcpy(to, from, bytes);
  return true;
}

void store_fence() noexcept {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace

CheckpointImage::CheckpointImage(std::vector<Entry> entries) : entries_(std::move(entries)) {
  for (const Entry& entry : entries_) {
    if (entry.bytes() == 0 || !entry.path.starts_with('/')) {
      throw UsageError(
          fmt::format("'{}' of shape {} cannot be kept in a checkpoint; it needs a path and at least "
                      "one element",
                      entry.path, to_string(entry.shape)));
    }
  }
  ImageLayout layout = lay_out(entries_);
  offsets_ = std::move(layout.offsets);
  bytes_ = std::move(layout.bytes);
  std::vector<Extent> extents;
  extents.reserve(entries_.size());
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (offsets_[i] > bytes_.size() || entries_[i].bytes() > bytes_.size() - offsets_[i]) {
      throw InternalError(fmt::format("laying out a checkpoint: '{}' is outside of it", entries_[i].path));
    }
    extents.push_back({entries_[i].path, entries_[i].type, entries_[i].shape, offsets_[i]});
  }
  index_ = build_index(extents);
}

const Entry* CheckpointImage::snapshot() noexcept {
  const Entry* bad = nullptr;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    const bool good = copy_numbers(entry.type, entry.data, bytes_.data() + offsets_[i], entry.bytes());
    // What hooks keep may well be infinite: the best of nothing yet.
    if (!good && bad == nullptr && !entry.path.starts_with(kHooksFolder)) bad = &entry;
  }
  // What was written past the caches must be there before another thread is told of it.
  store_fence();
  return bad;
}

}  // namespace lockstep
