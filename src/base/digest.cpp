#include <algorithm>
#include <cstring>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/error.hpp>

// Compiled here, for the instruction set of this build: the packaged library uses the oldest one.
#define XXH_INLINE_ALL
#include <xxhash.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace lockstep {
namespace {

constexpr std::uint32_t kCastagnoli = 0x82f63b78;  // reflected polynomial

constexpr auto make_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kCastagnoli : 0);
    table[byte] = crc;
  }
  return table;
}

constexpr auto kTable = make_table();

std::uint32_t crc32c_table(const std::byte* data, std::size_t size, std::uint32_t crc) noexcept {
  for (std::size_t i = 0; i < size; ++i) {
    crc = kTable[(crc ^ std::to_integer<std::uint32_t>(data[i])) & 0xff] ^ (crc >> 8);
  }
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) std::uint32_t crc32c_sse42(const std::byte* data, std::size_t size,
                                                             std::uint32_t crc) noexcept {
  std::uint64_t wide = crc;
  while (size >= 8) {
    std::uint64_t word;
    std::memcpy(&word, data, 8);
    wide = _mm_crc32_u64(wide, word);
    data += 8;
    size -= 8;
  }
  return crc32c_table(data, size, static_cast<std::uint32_t>(wide));
}

/// The checksums of four blocks that lie one behind the other. The instruction has a latency of three cycles
/// and can start one each cycle: one block alone would leave it idle most of the time.
__attribute__((target("sse4.2"))) void crc32c_four_sse42(const std::byte* data, std::size_t block,
                                                         std::uint32_t* crcs) noexcept {
  std::uint64_t wide[4] = {~std::uint32_t{0}, ~std::uint32_t{0}, ~std::uint32_t{0}, ~std::uint32_t{0}};
  std::size_t done = 0;
  for (; done + 8 <= block; done += 8) {
    for (std::size_t lane = 0; lane < 4; ++lane) {
      std::uint64_t word;
      std::memcpy(&word, data + lane * block + done, 8);
      wide[lane] = _mm_crc32_u64(wide[lane], word);
    }
  }
  for (std::size_t lane = 0; lane < 4; ++lane) {
    crcs[lane] =
        ~crc32c_table(data + lane * block + done, block - done, static_cast<std::uint32_t>(wide[lane]));
  }
}
#endif

bool has_crc_instruction() noexcept {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("sse4.2") != 0;
  return has;
#else
  return false;
#endif
}

}  // namespace

std::string Digest::hex() const {
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  text.reserve(32);
  for (const std::uint8_t byte : bytes) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

struct Hasher::State {
  XXH3_state_t xxh;
};

Hasher::Hasher() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(&state_->xxh);
}
Hasher::~Hasher() = default;
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher& Hasher::operator=(Hasher&&) noexcept = default;

void Hasher::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(&state_->xxh, bytes.data(), bytes.size());
}

void Hasher::update(std::string_view text) {
  update(std::as_bytes(std::span(text.data(), text.size())));
}

Digest Hasher::digest() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state_->xxh));
  Digest digest;
  std::memcpy(digest.bytes.data(), canonical.digest, digest.bytes.size());
  return digest;
}

Digest digest_of(std::span<const std::byte> bytes) {
  Hasher hasher;
  hasher.update(bytes);
  return hasher.digest();
}

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t crc) noexcept {
  crc = ~crc;
#if defined(__x86_64__)
  if (has_crc_instruction()) return ~crc32c_sse42(bytes.data(), bytes.size(), crc);
#endif
  return ~crc32c_table(bytes.data(), bytes.size(), crc);
}

void crc32c_blocks(std::span<const std::byte> bytes, std::size_t block_bytes, std::span<std::uint32_t> crcs) {
  if (block_bytes == 0 || crcs.size() != (bytes.size() + block_bytes - 1) / block_bytes) {
    throw InternalError("one checksum is needed for each block");
  }
  std::size_t block = 0;
#if defined(__x86_64__)
  if (has_crc_instruction()) {
    for (; (block + 4) * block_bytes <= bytes.size(); block += 4) {
      crc32c_four_sse42(bytes.data() + block * block_bytes, block_bytes, &crcs[block]);
    }
  }
#endif
  for (; block < crcs.size(); ++block) {
    const std::size_t offset = block * block_bytes;
    crcs[block] = crc32c(bytes.subspan(offset, std::min(block_bytes, bytes.size() - offset)));
  }
}

}  // namespace lockstep
