#include <string>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/step_values.hpp>

namespace lockstep {

TEST_CASE("values keep their order, a name set again keeps its place, and a 17th value is refused") {
  StepValues values{{"loss", 1}, {"accuracy", 2}};
  values.set("loss", 3);
  CHECK(values.all().size() == 2);
  CHECK(values.all()[0].name == "loss");
  CHECK(values.find("loss") == 3);
  CHECK(!values.find("los"));
  static const std::string names = "abcdefghijklmnopqrst";
  StepValues many;
  for (std::size_t i = 0; i < kMaxValues; ++i) many.set(std::string_view(names).substr(i, 1), 0);
  many.set("a", 1);
  CHECK_THROWS_AS(many.set("zz", 1), UsageError);
}

TEST_CASE("the digest of names tells order and boundaries apart, not values") {
  const auto digest = [](std::initializer_list<StepValues::Value> values) {
    return StepValues(values).names_digest();
  };
  CHECK(digest({{"a", 1}, {"b", 2}}) == digest({{"a", 3}, {"b", 4}}));
  CHECK(digest({{"a", 1}, {"b", 2}}) != digest({{"b", 1}, {"a", 2}}));
  CHECK(digest({{"ab", 1}, {"c", 2}}) != digest({{"a", 1}, {"bc", 2}}));
  CHECK(digest({}) != digest({{"a", 1}}));
}

}  // namespace lockstep
