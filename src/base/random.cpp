#include <cmath>
#include <cstddef>
#include <numbers>

#include <lockstep/base/random.hpp>

namespace lockstep {
namespace {

/// In [0, 1), with 24 bits.
float unit_interval(std::uint32_t bits) noexcept {
  return static_cast<float>(bits >> 8) * 0x1p-24F;
}

}  // namespace

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                    std::array<std::uint32_t, 2> key) noexcept {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xd2511f53} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xcd9e8d57} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key[0] += 0x9e3779b9;
    key[1] += 0xbb67ae85;
  }
  return counter;
}

Random::Random(std::uint64_t seed, Purpose purpose, std::uint32_t a, std::uint32_t b) noexcept
    : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
      purpose_(static_cast<std::uint32_t>(purpose)),
      a_(a),
      b_(b) {}

std::uint32_t Random::bits(std::uint32_t i) const noexcept {
  return philox({i >> 2, a_, b_, purpose_}, key_)[i & 3];
}

float Random::uniform(std::uint32_t i) const noexcept {
  return unit_interval(bits(i));
}

void Random::fill_uniform(std::span<float> values) const noexcept {
  for (std::size_t i = 0; i < values.size();) {
    const auto block = philox({static_cast<std::uint32_t>(i >> 2), a_, b_, purpose_}, key_);
    for (std::size_t k = 0; k < block.size() && i < values.size(); ++k, ++i) {
      values[i] = unit_interval(block[k]);
    }
  }
}

float Random::normal(std::uint32_t i) const noexcept {
  // (0, 1] for the logarithm. Double precision, so that only the last rounding is to float.
  const double radius_bits = (static_cast<double>(bits(2 * i)) + 1.0) * 0x1p-32;
  const double angle = static_cast<double>(bits(2 * i + 1)) * 0x1p-32 * 2.0 * std::numbers::pi;
  return static_cast<float>(std::sqrt(-2.0 * std::log(radius_bits)) * std::cos(angle));
}

std::uint32_t Random::below(std::uint32_t i, std::uint32_t bound) const noexcept {
  return static_cast<std::uint32_t>((std::uint64_t{bits(i)} * bound) >> 32);
}

}  // namespace lockstep
