#pragma once

#include <bit>
#include <cstdint>

namespace lockstep {

/// Elementary functions that a compiler can form vectors of, and whose bits are those of this source, not of
/// the machine's mathematical library. Each is good to a few units in the last place, and keeps NaN.

/// a * b + c, rounded once where the CPU can and this is compiled for it.
inline float fused(float a, float b, float c) noexcept {
#ifdef __FMA__
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

/// e^(x - whole * ln 2), at most about half of ln 2 away from 1.
inline float exp_of_rest(float x, float whole) noexcept {
  const float r = fused(whole, 2.12194440e-4F, fused(whole, -0.693359375F, x));
  float p = 1.9875691500e-4F;
  p = fused(p, r, 1.3981999507e-3F);
  p = fused(p, r, 8.3334519073e-3F);
  p = fused(p, r, 4.1665795894e-2F);
  p = fused(p, r, 1.6666665459e-1F);
  p = fused(p, r, 5.0000001201e-1F);
  return fused(p, r * r, r) + 1.0F;
}

/// e^x. Beyond the range of float: 0 below -104, infinity above 88.7.
inline float fast_exp(float x) noexcept {
  constexpr float kLow = -104.0F;
  constexpr float kHigh = 89.0F;
  float y = x < kLow ? kLow : x;
  y = y > kHigh ? kHigh : y;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to a whole number, in the lowest bits
  const float rounded = fused(y, 1.44269504F, kRound);
  const float whole = rounded - kRound;
  // In two steps, since 2^128 is no float. A NaN has no whole part; any power will do for it.
  const std::int32_t n = std::bit_cast<std::int32_t>(rounded) - std::bit_cast<std::int32_t>(kRound);
  const std::int32_t half = n >> 1;
  const float scale_1 = std::bit_cast<float>((half + 127) << 23);
  const float scale_2 = std::bit_cast<float>((n - half + 127) << 23);
  return exp_of_rest(y, whole) * scale_1 * scale_2;
}

/// e^x for x <= 0, with fewer instructions, and the same bits above -87. Below -87.7: 0.
inline float fast_exp_below_zero(float x) noexcept {
  constexpr float kLow = -88.0F;
  const float y = x < kLow ? kLow : x;
  // As above, and with the offset of a float's exponent: the sum's lowest bits are that of 2^whole, or 0.
  constexpr float kRound = 12582912.0F + 127.0F;
  const float rounded = fused(y, 1.44269504F, kRound);
  const float whole = rounded - kRound;
  const float scale = std::bit_cast<float>(std::bit_cast<std::uint32_t>(rounded) << 23);
  return exp_of_rest(y, whole) * scale;
}

/// 1 / (1 + e^-x)
inline float fast_sigmoid(float x) noexcept {
  return 1.0F / (1.0F + fast_exp(-x));
}

/// tanh x, as a quotient of polynomials between -9 and 9 (the one of Eigen's vectorized tanh).
inline float fast_tanh(float x) noexcept {
  constexpr float kEnd = 7.90531110763549805F;  // from here on the result is 1
  float y = x < -kEnd ? -kEnd : x;
  y = y > kEnd ? kEnd : y;
  const float s = y * y;
  float p = -2.76076847742355e-16F;
  p = fused(p, s, 2.00018790482477e-13F);
  p = fused(p, s, -8.60467152213735e-11F);
  p = fused(p, s, 5.12229709037114e-08F);
  p = fused(p, s, 1.48572235717979e-05F);
  p = fused(p, s, 6.37261928875436e-04F);
  p = fused(p, s, 4.89352455891786e-03F);
  float q = 1.19825839466702e-06F;
  q = fused(q, s, 1.18534705686654e-04F);
  q = fused(q, s, 2.26843463243900e-03F);
  q = fused(q, s, 4.89352518554385e-03F);
  return y * p / q;
}

/// The error function, likewise (Eigen's, between -4 and 4, where it is 1 to the last bit).
inline float fast_erf(float x) noexcept {
  float y = x < -4.0F ? -4.0F : x;
  y = y > 4.0F ? 4.0F : y;
  const float s = y * y;
  float p = -2.72614225801306e-10F;
  p = fused(p, s, 2.77068142495902e-08F);
  p = fused(p, s, -2.10102402082508e-06F);
  p = fused(p, s, -5.69250639462346e-05F);
  p = fused(p, s, -7.34990630326855e-04F);
  p = fused(p, s, -2.95459980854025e-03F);
  p = fused(p, s, -1.60960333262415e-02F);
  float q = -1.45660718464996e-05F;
  q = fused(q, s, -2.13374055278905e-04F);
  q = fused(q, s, -1.68282697438203e-03F);
  q = fused(q, s, -7.37332916720468e-03F);
  q = fused(q, s, -1.42647390514189e-02F);
  return y * p / q;
}

/// P(a standard normal value is above x) for x >= 0, where e = e^(-x^2 / 2) is known: to 1e-7 (Abramowitz and
/// Stegun 7.1.26).
inline float normal_tail(float x, float e) noexcept {
  const float t = 1.0F / fused(x, 0.23164189F, 1.0F);
  float p = 0.5307027145F;
  p = fused(p, t, -0.7265760135F);
  p = fused(p, t, 0.7107068705F);
  p = fused(p, t, -0.142248368F);
  p = fused(p, t, 0.127414796F);
  return p * t * e;
}

}  // namespace lockstep
