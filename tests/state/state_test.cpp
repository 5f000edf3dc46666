#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/state/state.hpp>

using namespace lockstep;

namespace {

/// The message of the UsageError that `call` throws; empty if there is none.
template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const UsageError& error) {
    return error.what();
  }
  return {};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("tensors are aligned ranges of one arena, at the same place in every arena of the layout") {
  State state;
  const Tensor weight = state.parameter("dense/weight", {3, 7});
  const Tensor bias = state.parameter("dense/bias", {7});
  const Tensor scalar = state.parameter("scale", {});
  const Tensor mean = state.buffer("mean", {5});
  state.slot("velocity");
  CHECK_FALSE(state.frozen());
  PlainAllocator allocator;
  state.freeze(allocator);
  CHECK(state.frozen());
  CHECK(state.parameter_count() == 29);
  CHECK(state.parameter_elements() == state.parameters().size());
  std::size_t end = 0;
  for (const Tensor& tensor : state.parameter_tensors()) {
    CHECK(tensor.offset() % kArenaAlignment == 0);
    CHECK(tensor.offset() >= end);
    end = tensor.offset() + tensor.size();
    CHECK(tensor.values().data() == state.parameters().data() + tensor.offset());
    CHECK(tensor.in(state.slot_values("velocity")).size() == tensor.size());
  }
  CHECK(end <= state.parameter_elements());
  CHECK(weight.shape() == Shape{3, 7});
  CHECK(scalar.size() == 1);
  bias.values()[6] = 4;
  CHECK(state.parameters()[bias.offset() + 6] == 4);
  CHECK(mean.values().data() == state.buffers().data());
  CHECK_THROWS_AS(state.slot_values("momentum"), InternalError);
}

TEST_CASE("the entries are all that a checkpoint needs, and point at the values themselves") {
  State state;
  const Tensor weight = state.parameter("w", {2});
  state.buffer("mean", {1});
  state.slot("m");
  state.slot("v");
  std::vector<double> own{1, 2, 3};
  state.attach("own", std::span(own), {3});
  state.setting("seed", "17");
  PlainAllocator allocator;
  CHECK_THROWS_AS(state.entries(), InternalError);
  state.freeze(allocator);
  state.set_global_step(41);

  std::vector<std::string> paths;
  for (const Entry& entry : state.entries()) {
    paths.push_back(entry.path);
    if (entry.path == "/model/w") CHECK(entry.data == reinterpret_cast<std::byte*>(weight.values().data()));
    if (entry.path == "/model/own") {
      CHECK(entry.type == ElementType::f64);
      CHECK(entry.data == reinterpret_cast<std::byte*>(own.data()));
    }
    if (entry.path == "/session/global_step") CHECK(*reinterpret_cast<std::int64_t*>(entry.data) == 41);
    if (entry.path == "/config/seed") {
      CHECK(entry.shape == Shape{2});
      CHECK(std::string(reinterpret_cast<char*>(entry.data), 2) == "17");
    }
  }
  CHECK(paths == std::vector<std::string>{"/model/w", "/model/own", "/slots/m/w", "/slots/v/w",
                                          "/buffers/mean", "/session/global_step", "/config/seed"});
}

TEST_CASE("numbers that hooks keep are entries, not parameters, and can be asked for again") {
  State state;
  state.parameter("w", {1});
  const auto kept = state.keep("stopping/loss", 2);
  CHECK(kept.size() == 2);
  CHECK(kept[1] == 0);
  CHECK_THROWS_AS(state.keep("stopping/loss", 3), UsageError);
  CHECK_THROWS_AS(state.keep("stopping", 2), UsageError);  // a folder of the other
  CHECK_THROWS_AS(state.keep("a b", 1), UsageError);
  CHECK_THROWS_AS(state.keep("none", 0), UsageError);
  state.keep("more", 1)[0] = 5;
  PlainAllocator allocator;
  state.freeze(allocator);
  CHECK_THROWS_AS(state.keep("late", 1), UsageError);
  CHECK(state.keep("stopping/loss", 2).data() == kept.data());
  const Digest digest = state.parameters_digest();
  kept[0] = 7;
  CHECK(state.parameters_digest() == digest);
  std::vector<std::string> paths;
  for (const Entry& entry : state.entries()) {
    paths.push_back(entry.path);
    if (entry.path != "/session/hooks/stopping/loss") continue;
    CHECK(entry.type == ElementType::f64);
    CHECK(entry.shape == Shape{2});
    CHECK(entry.data == reinterpret_cast<const std::byte*>(kept.data()));
  }
  CHECK(paths == std::vector<std::string>{"/model/w", "/session/global_step", "/session/hooks/more",
                                          "/session/hooks/stopping/loss"});
}

TEST_CASE("the digest of the parameters covers parameters and attached memory, and nothing else") {
  State state;
  const Tensor weight = state.parameter("w", {2});
  const Tensor mean = state.buffer("mean", {1});
  state.slot("v");
  std::vector<std::int64_t> own{1};
  state.attach("own", std::span(own), {1});
  PlainAllocator allocator;
  state.freeze(allocator);
  const Digest digest = state.parameters_digest();
  mean.values()[0] = 1;
  state.slot_values("v")[0] = 1;
  state.set_global_step(9);
  state.parameters()[2] = 1;  // padding
  CHECK(state.parameters_digest() == digest);
  weight.values()[1] = 1;
  CHECK(state.parameters_digest() != digest);
  weight.values()[1] = 0;
  own[0] = 2;
  CHECK(state.parameters_digest() != digest);
}

TEST_CASE("a name that is no path of plain parts is refused") {
  State state;
  for (const char* name : {"", "/a", "a/", "a//b", "a b", "a/../b", ".", "..", "a/.", "\xc3\xa4", "a\n"}) {
    CAPTURE(name);
    CHECK(contains(refusal([&] { state.parameter(name, {1}); }), "is no tensor name"));
  }
  CHECK(contains(refusal([&] { state.parameter(std::string(201, 'a'), {1}); }), "is no tensor name"));
  CHECK(refusal([&] { state.parameter("block-1/dense_2/w.0", {1}); }).empty());
}

// TF: Saver.testSameName
TEST_CASE("a name given twice, or that is the folder of another, is refused") {
  State state;
  state.parameter("a/b", {1});
  std::vector<float> own(1);
  CHECK(contains(refusal([&] { state.parameter("a/b", {1}); }), "given twice"));
  CHECK(contains(refusal([&] { state.buffer("a/b", {1}); }), "given twice"));
  CHECK(contains(refusal([&] { state.attach("a/b", std::span(own), {1}); }), "given twice"));
  CHECK(contains(refusal([&] { state.parameter("a", {1}); }), "'a' is a folder of tensor name 'a/b'"));
  CHECK(
      contains(refusal([&] { state.parameter("a/b/c", {1}); }), "'a/b' is a folder of tensor name 'a/b/c'"));
  CHECK(refusal([&] { state.parameter("a/bc", {1}); }).empty());
}

TEST_CASE("a slot's name is one plain part, given once") {
  State state;
  state.slot("velocity");
  CHECK(contains(refusal([&] { state.slot("velocity"); }), "given twice"));
  CHECK(contains(refusal([&] { state.slot("a/b"); }), "may not contain '/'"));
}

TEST_CASE("a shape with an empty dimension, too many of them, or too many elements is refused") {
  State state;
  CHECK(contains(refusal([&] { state.parameter("w", {3, 0}); }), "[3, 0]"));
  CHECK(contains(refusal([&] { state.parameter("w", {-1}); }), "must be at least 1"));
  CHECK(contains(refusal([&] { state.parameter("w", Shape(9, 1)); }), "at most 8 dimensions"));
  const std::int64_t large = std::int64_t{1} << 32;
  CHECK(contains(refusal([&] {
                   state.parameter("w", {large, large, large});
                 }),
                 "at most 1099511627776 elements"));
  CHECK(refusal([&] { state.parameter("w", {3, 1}); }).empty());  // a refused declaration takes no name
}

TEST_CASE("attached memory must be as large as its shape says") {
  State state;
  std::vector<float> own(5);
  CHECK(contains(refusal([&] { state.attach("own", std::span(own), {2, 3}); }), "has 5 elements"));
  CHECK(refusal([&] { state.attach("own", std::span(own), {5}); }).empty());
}

TEST_CASE("settings keep their last value; an empty one and one that is the folder of another are refused") {
  State state;
  state.setting("seed", "1");
  state.setting("seed", "2");
  CHECK(state.settings().at("seed") == "2");
  CHECK(contains(refusal([&] { state.setting("model", ""); }), "empty value"));
  CHECK(contains(refusal([&] { state.setting("seed/a", "1"); }), "'seed' is a folder of setting 'seed/a'"));
}

TEST_CASE("after freeze nothing can be declared") {
  State state;
  PlainAllocator allocator;
  state.freeze(allocator);
  std::vector<float> own(1);
  CHECK(contains(refusal([&] { state.parameter("w", {1}); }), "after the state was frozen"));
  CHECK_FALSE(refusal([&] { state.buffer("w", {1}); }).empty());
  CHECK_FALSE(refusal([&] { state.slot("w"); }).empty());
  CHECK_FALSE(refusal([&] { state.attach("w", std::span(own), {1}); }).empty());
  CHECK_FALSE(refusal([&] { state.setting("w", "1"); }).empty());
  CHECK_FALSE(refusal([&] { state.freeze(allocator); }).empty());
  CHECK(state.entries().size() == 1);  // the global step alone
}

TEST_CASE("a state can be moved, and its tensors stay valid") {
  State first;
  const Tensor weight = first.parameter("w", {2});
  PlainAllocator allocator;
  first.freeze(allocator);
  weight.values()[0] = 3;
  const State second = std::move(first);
  CHECK(second.parameters()[0] == 3);
  CHECK(weight.values()[0] == 3);
}
