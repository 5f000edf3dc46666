// Any bytes as a checkpoint file: the trailer is refused with a message or everything it says holds.

#include <cstdlib>
#include <cstring>
#include <vector>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/error.hpp>
#include <lockstep/base/mac.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/trailer.hpp>

#include "bytes_file.hpp"

namespace {

constexpr std::size_t kFooter = 160;
constexpr std::size_t kImageBytesAt = 0;
constexpr std::size_t kBlockCountAt = 36;
constexpr std::size_t kIndexBytesAt = 40;
constexpr std::size_t kSumAt = 92;
constexpr std::size_t kDigestAt = 128;
constexpr std::uint64_t kBlock = 4096;

template <class T>
T get(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

/// A checksum cannot be guessed: those of a file whose sizes fit are made right, so that what lies behind is
/// reached.
void make_checksums_right(std::vector<std::byte>& file) {
  if (file.size() < kFooter) return;
  std::byte* footer = file.data() + file.size() - kFooter;
  const auto image = get<std::uint64_t>(footer + kImageBytesAt);
  const auto blocks = get<std::uint32_t>(footer + kBlockCountAt);
  const auto index = get<std::uint64_t>(footer + kIndexBytesAt);
  const std::uint64_t room = file.size() - kFooter;
  if (index > room || std::uint64_t{4} * blocks > room - index) return;
  if (image != room - index - std::uint64_t{4} * blocks || (image + kBlock - 1) / kBlock != blocks) return;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const auto part = std::span(file).subspan(i * kBlock, std::min(kBlock, image - i * kBlock));
    const std::uint32_t sum = lockstep::crc32c(part);
    std::memcpy(file.data() + image + 4 * i, &sum, sizeof sum);
  }
  const std::uint32_t sum = lockstep::crc32c(std::span(file).subspan(image, room - image + kSumAt));
  std::memcpy(footer + kSumAt, &sum, sizeof sum);
  const auto digest = lockstep::digest_of(std::span(file).first(room + kDigestAt)).bytes;
  std::memcpy(footer + kDigestAt, digest.data(), digest.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace lockstep;
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data, size));
  std::vector<std::byte> file(bytes.begin() + 1, bytes.end());
  if ((data[0] & 1) != 0) make_checksums_right(file);
  // Damage in the image: the message names what lies there.
  if ((data[0] & 4) != 0 && !file.empty()) file[file.size() / 3] ^= std::byte{1};
  static const MacKey key(std::vector<std::byte>(MacKey::kLeast, std::byte{7}));
  const MacKey* wanted = (data[0] & 2) != 0 ? &key : nullptr;
  test::BytesFile source(file);
  try {
    const VerifiedImage image = read_verified(source, "input", std::uint64_t{1} << 40, wanted);
    if (image.trailer.file_bytes != file.size() || image.image().size() != image.trailer.image_bytes)
      std::abort();
    if (wanted != nullptr && !image.trailer.is_signed) std::abort();
    if (std::memcmp(image.image().data(), file.data(), image.image().size()) != 0) std::abort();
    if (image.trailer.step < 0) std::abort();
    if (verify_file(source, "input", wanted).digest != image.trailer.digest) std::abort();
    for (const Extent& extent : parse_index(image.index, image.trailer.image_bytes, "input")) {
      const auto bytes_of_it =
          static_cast<std::uint64_t>(element_count(extent.shape)) * size_in_bytes(extent.type);
      if (extent.offset > image.trailer.image_bytes) std::abort();
      if (bytes_of_it > image.trailer.image_bytes - extent.offset) std::abort();
    }
    if (image.index.empty()) return 0;  // then HDF5 is asked, which is not what is tested here
    const CheckpointFile checkpoint(source, "input", wanted);
    (void)checkpoint.digest();  // reads every byte of every entry
  } catch (const DataError&) {
    // Refused.
  }
  return 0;
}
