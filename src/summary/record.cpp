#include <span>

#include <lockstep/base/digest.hpp>
#include <lockstep/summary/record.hpp>

namespace lockstep {
namespace {

template <class Integer>
void append_little_endian(std::string& out, Integer value) {
  for (std::size_t i = 0; i < sizeof value; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
}

}  // namespace

std::uint32_t masked_crc32c(std::string_view data) noexcept {
  const std::uint32_t crc = crc32c(std::as_bytes(std::span(data)));
  return (crc >> 15 | crc << 17) + 0xa282ead8;
}

void append_record(std::string& out, std::string_view data) {
  const std::size_t start = out.size();
  append_little_endian(out, std::uint64_t{data.size()});
  append_little_endian(out, masked_crc32c(std::string_view(out).substr(start)));
  out += data;
  append_little_endian(out, masked_crc32c(data));
}

}  // namespace lockstep
