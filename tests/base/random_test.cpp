#include <cmath>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/random.hpp>

using namespace lockstep;

namespace {

using Block = std::array<std::uint32_t, 4>;

}  // namespace

TEST_CASE("philox gives the known answers of its authors' library") {
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  constexpr std::uint32_t kOnes = 0xffffffff;
  CHECK(philox({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}) ==
        Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("the numbers of a key never change from one version to the next") {
  // From another program. Initial values, shuffles and dropout of saved runs depend on it.
  const Random random(0x123456789abcdef, Purpose::test, 7, 9);
  const std::vector<std::uint32_t> expected{0xe5b7444e, 0x7380e42a, 0x497c2b55,
                                            0x6d698465, 0x492c74d1, 0xbf5cb56a};
  for (std::uint32_t i = 0; i < expected.size(); ++i) CHECK(random.bits(i) == expected[i]);
}

TEST_CASE("filling gives the numbers one by one, of any count") {
  const Random random(3, Purpose::test, 1, 4);
  for (const std::size_t count : {0, 1, 3, 4, 5, 1023}) {
    CAPTURE(count);
    std::vector<float> values(count, -1.0F);
    random.fill_uniform(values);
    for (std::size_t i = 0; i < count; ++i) CHECK(values[i] == random.uniform(static_cast<std::uint32_t>(i)));
  }
}

TEST_CASE("any difference in seed, purpose, a or b gives other numbers") {
  const std::uint32_t base = Random(1, Purpose::test, 2, 3).bits(0);
  CHECK(Random(2, Purpose::test, 2, 3).bits(0) != base);
  CHECK(Random(std::uint64_t{1} << 32 | 1, Purpose::test, 2, 3).bits(0) != base);
  CHECK(Random(1, Purpose::dropout, 2, 3).bits(0) != base);
  CHECK(Random(1, Purpose::test, 3, 3).bits(0) != base);
  CHECK(Random(1, Purpose::test, 2, 2).bits(0) != base);
}

TEST_CASE("uniform numbers lie in [0, 1) with the mean and variance they should have") {
  const Random random(42, Purpose::test);
  constexpr std::uint32_t kCount = 100000;
  double sum = 0;
  double squares = 0;
  for (std::uint32_t i = 0; i < kCount; ++i) {
    const double x = random.uniform(i);
    CHECK_UNARY(x >= 0 && x < 1);
    sum += x;
    squares += x * x;
  }
  const double mean = sum / kCount;
  CHECK(std::abs(mean - 0.5) < 0.005);
  CHECK(std::abs(squares / kCount - mean * mean - 1.0 / 12) < 0.002);
}

TEST_CASE("normal numbers have mean 0, variance 1 and the tails of a normal distribution") {
  const Random random(43, Purpose::test);
  constexpr std::uint32_t kCount = 100000;
  double sum = 0;
  double squares = 0;
  int beyond_two = 0;
  for (std::uint32_t i = 0; i < kCount; ++i) {
    const double x = random.normal(i);
    CHECK_UNARY(std::isfinite(x));
    sum += x;
    squares += x * x;
    if (std::abs(x) > 2) ++beyond_two;
  }
  CHECK(std::abs(sum / kCount) < 0.015);
  CHECK(std::abs(squares / kCount - 1) < 0.025);
  CHECK(std::abs(beyond_two - 4550) < 350);
}

TEST_CASE("below gives every value below its bound about equally often") {
  const Random random(44, Purpose::test);
  for (const std::uint32_t bound : {1U, 2U, 7U, 10U}) {
    std::vector<int> count(bound);
    for (std::uint32_t i = 0; i < 10000; ++i) ++count.at(random.below(i, bound));
    for (const int n : count) CHECK(std::abs(n - 10000.0 / bound) < 500);
  }
  for (std::uint32_t i = 0; i < 1000; ++i) CHECK(random.below(i, 0xffffffff) < 0xffffffff);
}
