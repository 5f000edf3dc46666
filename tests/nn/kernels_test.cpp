#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/kernels.hpp>

#include "support.hpp"

namespace lockstep {
namespace {

struct Sizes {
  std::int64_t m, n, k;
};

// Degenerate, odd, just past the widths of registers and blocks, and those of real layers.
constexpr Sizes kSizes[] = {{1, 1, 1},     {1, 7, 3},     {7, 1, 5},     {3, 5, 1},
                            {2, 3, 17},    {9, 33, 31},   {17, 16, 15},  {32, 10, 64},
                            {10, 512, 32}, {33, 65, 129}, {65, 49, 700}, {64, 128, 256}};
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
  for (const auto& kernels : test::all_kernels()) {
    for (const Sizes s : kSizes) {
      const auto a = test::normal_values(product(s.m, s.k), 1);
      const auto b = test::normal_values(product(s.k, s.n), 2);
      for (const Transpose ta : kBoth) {
        for (const Transpose tb : kBoth) {
          CAPTURE(kernels->name());
          CAPTURE(s.m);
          CAPTURE(s.n);
          CAPTURE(s.k);
          const auto expected = reference(ta == Transpose::yes, tb == Transpose::yes, s, a, b);
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

TEST_CASE("a product has the same bits wherever its buffers lie and however often it runs") {
  for (const auto& kernels : test::all_kernels()) {
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
  for (const auto& kernels : test::all_kernels()) {
    CAPTURE(kernels->name());
    const std::int64_t m = 5, n = 6, k = 7;
    const auto a = test::normal_values(product(m, k + 2), 5);
    const auto b = test::normal_values(product(k, n + 3), 6);
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
