#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/state/entry.hpp>

using namespace lockstep;

namespace {

template <class Value>
Entry entry(std::string path, ElementType type, Shape shape, std::vector<Value>& values) {
  return {std::move(path), type, std::move(shape), reinterpret_cast<std::byte*>(values.data())};
}

}  // namespace

TEST_CASE("sizes and names of shapes and types") {
  CHECK(element_count({}) == 1);
  CHECK(element_count({3, 4}) == 12);
  CHECK(to_string(Shape{}) == "[]");
  CHECK(to_string(Shape{784, 512}) == "[784, 512]");
  CHECK(size_in_bytes(ElementType::f64) == 8);
  CHECK(size_in_bytes(ElementType::text) == 1);
  CHECK(to_string(ElementType::i64) == "i64");
  std::vector<double> values(6);
  CHECK(entry("/x", ElementType::f64, {2, 3}, values).bytes() == 48);
}

TEST_CASE("a digest does not depend on the order of the entries") {
  std::vector<float> a{1, 2, 3, 4};
  std::vector<float> b{5, 6};
  std::vector<std::int64_t> c{7};
  std::vector<Entry> entries{entry("/model/b", ElementType::f32, {2}, b),
                             entry("/model/a", ElementType::f32, {2, 2}, a),
                             entry("/session/c", ElementType::i64, {}, c)};
  const Digest digest = content_digest(entries);
  std::sort(entries.begin(), entries.end(), [](const Entry& x, const Entry& y) { return x.path < y.path; });
  do {
    CHECK(content_digest(entries) == digest);
  } while (std::next_permutation(entries.begin(), entries.end(),
                                 [](const Entry& x, const Entry& y) { return x.path < y.path; }));
}

TEST_CASE("a digest changes with name, type, shape and every byte") {
  std::vector<float> values{1, 2, 3, 4};
  const Digest digest = content_digest(std::vector{entry("/model/a", ElementType::f32, {2, 2}, values)});
  CHECK(content_digest(std::vector{entry("/model/b", ElementType::f32, {2, 2}, values)}) != digest);
  CHECK(content_digest(std::vector{entry("/model/a", ElementType::i32, {2, 2}, values)}) != digest);
  CHECK(content_digest(std::vector{entry("/model/a", ElementType::f32, {4}, values)}) != digest);
  CHECK(content_digest({}) != digest);
  for (std::size_t i = 0; i < 16; ++i) {
    auto* byte = reinterpret_cast<unsigned char*>(values.data()) + i;
    *byte ^= 1;
    CHECK(content_digest(std::vector{entry("/model/a", ElementType::f32, {2, 2}, values)}) != digest);
    *byte ^= 1;
  }
}

TEST_CASE("a prefix picks a part") {
  std::vector<float> a{1};
  std::vector<float> b{2};
  const std::vector<Entry> both{entry("/model/a", ElementType::f32, {1}, a),
                                entry("/slots/a", ElementType::f32, {1}, b)};
  CHECK(content_digest(both, "/model/") == content_digest(std::vector{both[0]}));
  CHECK(content_digest(both, "/model/") != content_digest(both));
}

TEST_CASE("the digest of a content never changes from one version to the next") {
  // XXH3-128 of "/model/w\0f32[2]\0" and the bytes of 1.0f and -2.0f, from another program.
  std::vector<float> values{1, -2};
  CHECK(content_digest(std::vector{entry("/model/w", ElementType::f32, {2}, values)}).hex() ==
        "1933d2619b85bf87bf00b5eb4e777920");
}
