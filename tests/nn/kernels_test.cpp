#include <bit>
#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/elementwise.hpp>
#include <lockstep/nn/kernels.hpp>

#include "support.hpp"

namespace lockstep {
namespace {

struct Sizes {
  std::int64_t m, n, k;
};

// Degenerate, odd, just past the widths of registers and blocks, and those of real layers.
constexpr Sizes kSizes[] = {{1, 1, 1},     {1, 7, 3},      {7, 1, 5},    {3, 5, 1},     {2, 3, 17},
                            {9, 33, 31},   {17, 16, 15},   {32, 10, 64}, {10, 512, 32}, {33, 65, 129},
                            {65, 49, 700}, {64, 128, 256}, {171, 521, 9}};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Transpose kBoth[] = {Transpose::no, Transpose::yes};

std::size_t product(std::int64_t a, std::int64_t b) {
  return static_cast<std::size_t>(a * b);
}

/// The definition, in double.
std::vector<double> reference(bool ta, bool tb, Sizes s, const std::vector<float>& a,
                              const std::vector<float>& b) {
  std::vector<double> c(product(s.m, s.n));
  for (std::int64_t i = 0; i < s.m; ++i) {
    for (std::int64_t j = 0; j < s.n; ++j) {
      double sum = 0;
      for (std::int64_t p = 0; p < s.k; ++p) {
        sum += static_cast<double>(a[static_cast<std::size_t>(ta ? p * s.m + i : i * s.k + p)]) *
               static_cast<double>(b[static_cast<std::size_t>(tb ? j * s.k + p : p * s.n + j)]);
      }
      c[static_cast<std::size_t>(i * s.n + j)] = sum;
    }
  }
  return c;
}

void multiply(const Kernels& kernels, Transpose ta, Transpose tb, Sizes s, std::span<const float> a,
              std::span<const float> b, bool accumulate, std::span<float> c) {
  kernels.gemm(ta, tb, s.m, s.n, s.k, a.data(), ta == Transpose::yes ? s.m : s.k, b.data(),
               tb == Transpose::yes ? s.k : s.n, accumulate, c.data(), s.n);
}

TEST_CASE("every library multiplies matrices of any shape and transposition, and adds when asked") {
  for (const auto& kernels : test::all_kernels_and_precisions()) {
    for (const Sizes s : kSizes) {
      const auto a = test::normal_values(product(s.m, s.k), 1);
      const auto b = test::normal_values(product(s.k, s.n), 2);
      const auto a_operands = test::as_operands(*kernels, a);
      const auto b_operands = test::as_operands(*kernels, b);
      for (const Transpose ta : kBoth) {
        for (const Transpose tb : kBoth) {
          CAPTURE(kernels->name());
          CAPTURE(static_cast<int>(kernels->precision()));
          CAPTURE(s.m);
          CAPTURE(s.n);
          CAPTURE(s.k);
          const auto expected =
              reference(ta == Transpose::yes, tb == Transpose::yes, s, a_operands, b_operands);
          // NaN in the destination must not leak into a product that does not add.
          std::vector<float> c(expected.size(), std::numeric_limits<float>::quiet_NaN());
          multiply(*kernels, ta, tb, s, a, b, false, c);
          std::vector<float> sum(expected.size(), 2.0F);
          multiply(*kernels, ta, tb, s, a, b, true, sum);
          double worst = 0;
          for (std::size_t i = 0; i < c.size(); ++i) {
            worst = std::max(worst, std::abs(static_cast<double>(c[i]) - expected[i]));
            worst = std::max(worst, std::abs(static_cast<double>(sum[i]) - 2.0 - expected[i]));
            if (std::isnan(c[i])) worst = 1;
          }
          CHECK(worst < 1e-5 * std::sqrt(static_cast<double>(s.k)) + 2e-6);
        }
      }
    }
  }
}

TEST_CASE("a product with a bias, and cut below zero, has the bits of these done one after the other") {
  for (const auto& kernels : test::all_kernels_and_precisions()) {
    for (const Sizes s : kSizes) {
      auto a = test::normal_values(product(s.m, s.k), 1);
      a.back() = std::numeric_limits<float>::quiet_NaN();
      const auto b = test::normal_values(product(s.k, s.n), 2);
      const auto bias = test::normal_values(static_cast<std::size_t>(s.n), 3);
      for (const bool cut : {false, true}) {
        CAPTURE(kernels->name());
        CAPTURE(s.m);
        CAPTURE(s.n);
        CAPTURE(s.k);
        CAPTURE(cut);
        std::vector<float> expected(product(s.m, s.n));
        multiply(*kernels, Transpose::no, Transpose::no, s, a, b, false, expected);
        cut ? add_bias_relu(expected, bias) : add_bias(expected, bias);
        std::vector<float> c(expected.size());
        kernels->affine(s.m, s.n, s.k, a.data(), b.data(), bias, cut, c.data());
        CHECK(test::same_bits(c, expected));
        CHECK(std::isnan(c.back()));
      }
    }
  }
}

TEST_CASE("a product has the same bits wherever its buffers lie and however often it runs") {
  for (const auto& kernels : test::all_kernels_and_precisions()) {
    for (const Sizes s : kSizes) {
      const auto a = test::normal_values(product(s.m, s.k), 3);
      const auto b = test::normal_values(product(s.k, s.n), 4);
      for (const Transpose ta : kBoth) {
        for (const Transpose tb : kBoth) {
          CAPTURE(kernels->name());
          CAPTURE(s.m);
          CAPTURE(s.n);
          CAPTURE(s.k);
          std::vector<float> first(product(s.m, s.n));
          multiply(*kernels, ta, tb, s, a, b, false, first);
          bool same = true;
          for (const std::size_t shift : {0, 1, 3, 4, 8, 13}) {
            const test::Shifted a_moved(a, shift), b_moved(b, (shift * 5) % 16),
                c_moved(first, (shift * 3) % 16);
            multiply(*kernels, ta, tb, s, a_moved.values(), b_moved.values(), false, c_moved.values());
            same = same && test::same_bits(first, c_moved.values());
          }
          CHECK(same);
        }
      }
    }
  }
}

TEST_CASE("leading dimensions larger than the rows leave what lies between untouched") {
  for (const auto& kernels : test::all_kernels_and_precisions()) {
    CAPTURE(kernels->name());
    CAPTURE(static_cast<int>(kernels->precision()));
    const std::int64_t m = 5, n = 6, k = 7;
    const auto a = test::as_operands(*kernels, test::normal_values(product(m, k + 2), 5));
    const auto b = test::as_operands(*kernels, test::normal_values(product(k, n + 3), 6));
    std::vector<float> c(product(m, n + 4), 42.0F);
    kernels->gemm(Transpose::no, Transpose::no, m, n, k, a.data(), k + 2, b.data(), n + 3, false, c.data(),
                  n + 4);
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < n + 4; ++j) {
        double expected = 42;
        if (j < n) {
          expected = 0;
          for (std::int64_t p = 0; p < k; ++p) {
            expected += static_cast<double>(a[static_cast<std::size_t>(i * (k + 2) + p)]) *
                        static_cast<double>(b[static_cast<std::size_t>(p * (n + 3) + j)]);
          }
        }
        CHECK(static_cast<double>(c[static_cast<std::size_t>(i * (n + 4) + j)]) ==
              doctest::Approx(expected).epsilon(1e-4));
      }
    }
  }
}

TEST_CASE("bf16 operands are rounded to the nearest, ties to even, and NaN stays NaN, wherever they stand") {
  const float tie = 1.0F + 0x1p-8F;          // between 1 and the next bf16, 1 + 2^-7: 1 is even
  const float odd_tie = 1.0F + 3 * 0x1p-8F;  // between an odd one and 1 + 2^-6
  struct Rounded {
    float value, expected;
  };
  const Rounded values[] = {{1.0F, 1.0F},
                            {tie, 1.0F},
                            {std::nextafter(tie, 2.0F), 1.0F + 0x1p-7F},
                            {std::nextafter(tie, 0.0F), 1.0F},
                            {odd_tie, 1.0F + 0x1p-6F},
                            {-odd_tie, -1.0F - 0x1p-6F},
                            {0.0F, 0.0F},
                            {kInfinity, kInfinity},
                            {-kInfinity, -kInfinity},
                            {std::numeric_limits<float>::max(), kInfinity},
                            {0x1p-120F, 0x1p-120F}};
  // Bits of a NaN that rounding alone would lose.
  const auto least_nan = std::bit_cast<float>(0x7f800001U);
  for (const KernelChoice choice : built_kernels()) {
    for (const Precision precision : {Precision::bf16, Precision::emulated_bf16}) {
      const auto kernels = make_kernels(choice, precision);
      CAPTURE(kernels->name());
      CAPTURE(static_cast<int>(kernels->precision()));
      // The one number stands in every place of a tile, a panel and beyond, where all others are 0.
      for (const Sizes s : {Sizes{1, 1, 1}, Sizes{15, 17, 3}, Sizes{33, 34, 35}}) {
        for (const Transpose ta : kBoth) {
          for (const Transpose tb : kBoth) {
            for (std::int64_t place = 0; place < s.k; ++place) {
              const auto one_of = [&](bool turned, std::int64_t rows, float value) {
                std::vector<float> matrix(product(rows, s.k));
                for (std::int64_t i = 0; i < rows; ++i) {
                  matrix[static_cast<std::size_t>(turned ? place * rows + i : i * s.k + place)] = value;
                }
                return matrix;
              };
              const auto multiplied = [&](float left, float right) {
                std::vector<float> c(product(s.m, s.n));
                multiply(*kernels, ta, tb, s, one_of(ta == Transpose::yes, s.m, left),
                         one_of(tb == Transpose::no, s.n, right), false, c);
                return c;
              };
              bool right = true;
              for (const auto& [value, expected] : values) {
                for (const float x : multiplied(value, 1.0F)) right = right && x == expected;
                for (const float x : multiplied(1.0F, value)) right = right && x == expected;
              }
              for (const float x : multiplied(least_nan, 1.0F)) right = right && std::isnan(x);
              for (const float x : multiplied(1.0F, least_nan)) right = right && std::isnan(x);
              CHECK(right);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("kernels say their precision, and that bf16 is emulated is part of what a run is compared by") {
  CHECK(precision_choice("f32") == Precision::f32);
  CHECK(precision_choice("bf16") == Precision::bf16);
  CHECK_THROWS_AS(precision_choice("fp16"), UsageError);
  for (const KernelChoice choice : built_kernels()) {
    const auto plain = make_kernels(choice);
    const auto emulated = make_kernels(choice, Precision::emulated_bf16);
    const auto best = make_kernels(choice, Precision::bf16);
    CHECK(plain->precision() == Precision::f32);
    CHECK(emulated->precision() == Precision::emulated_bf16);
    CHECK(best->precision() != Precision::f32);
    CHECK(emulated->instruction_set() != plain->instruction_set());
    CHECK((best->precision() == Precision::bf16) == (best->instruction_set() != emulated->instruction_set()));
    CHECK(emulated->description() == plain->description());
  }
}

TEST_CASE("a description names the library and stays the same") {
  for (const KernelChoice choice : built_kernels()) {
    CHECK(make_kernels(choice)->description() == make_kernels(choice)->description());
  }
  CHECK(make_kernels(KernelChoice::eigen)->description().find("Eigen 3") == 0);
}

TEST_CASE("automatic takes the last, fastest library of the build, and words are checked") {
  CHECK(make_kernels()->name() == make_kernels(built_kernels().back())->name());
  CHECK(kernel_choice("auto") == KernelChoice::automatic);
  CHECK(kernel_choice("eigen") == KernelChoice::eigen);
  CHECK(kernel_choice("onednn") == KernelChoice::onednn);
  CHECK_THROWS_AS(kernel_choice("mkl"), UsageError);
  if (built_kernels().size() == 1) CHECK_THROWS_AS(make_kernels(KernelChoice::onednn), UsageError);
}

}  // namespace
}  // namespace lockstep
