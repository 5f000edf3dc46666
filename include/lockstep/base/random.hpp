#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace lockstep {

/// Philox4x32 with 10 rounds: a function from (key, counter) to 128 random bits (Salmon et al., "Parallel
/// random numbers: as easy as 1, 2, 3", SC'11). Nothing is remembered between calls.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                    std::array<std::uint32_t, 2> key) noexcept;

/// What a random number is for. Numbers of different purposes never coincide, whatever their counters.
enum class Purpose : std::uint32_t {
  initial_values = 1,
  shuffle = 2,
  dropout = 3,
  augmentation = 4,
  test = 5
};

/// Random numbers keyed by (seed, purpose, a, b): for training a is the step or epoch, b the sample or
/// parameter. The i-th number is a pure function of these, so ranks and threads can draw in any order.
class Random {
 public:
  Random(std::uint64_t seed, Purpose purpose, std::uint32_t a = 0, std::uint32_t b = 0) noexcept;

  std::uint32_t bits(std::uint32_t i) const noexcept;

  /// Uniform in [0, 1), with 24 bits.
  float uniform(std::uint32_t i) const noexcept;

  /// values[i] = uniform(i), at the price of one block for four numbers.
  void fill_uniform(std::span<float> values) const noexcept;

  /// Standard normal (Box-Muller over the pair of numbers 2i and 2i+1).
  float normal(std::uint32_t i) const noexcept;

  /// Uniform integer in [0, bound), without modulo bias beyond 2^-32. Needs bound >= 1.
  std::uint32_t below(std::uint32_t i, std::uint32_t bound) const noexcept;

 private:
  std::array<std::uint32_t, 2> key_;
  std::uint32_t purpose_;
  std::uint32_t a_;
  std::uint32_t b_;
};

}  // namespace lockstep
