#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/feed_fn.hpp>

#include "fake_context.hpp"

namespace lockstep {

TEST_CASE("what is fed is found by name and type, without a copy") {
  const std::vector<float> image{1, 2, 3};
  const std::vector<std::int32_t> label{7};
  Feeds feeds;
  feeds.add("image", std::span(image));
  feeds.add("label", std::span(label));
  CHECK(feeds.size() == 2);
  CHECK(feeds.has("label"));
  CHECK(!feeds.has("lab"));
  CHECK(feeds.get<float>("image").data() == image.data());
  CHECK(feeds.get<float>("image").size() == 3);
  CHECK(feeds.get<std::int32_t>("label")[0] == 7);
  CHECK_THROWS_WITH_AS(feeds.get<float>("images"),
                       "nothing named 'images' is fed to this step; what is fed: image, label", UsageError);
  CHECK_THROWS_WITH_AS(feeds.get<std::int64_t>("label"),
                       "'label' is fed as values of another type than the step takes it for", UsageError);
  CHECK_THROWS_AS(feeds.add("image", std::span(label)), UsageError);
  feeds.clear();
  CHECK(!feeds.has("image"));
}

TEST_CASE("a feeding hook asks its function before each step") {
  test::FakeContext context;
  double value = 0;
  FeedFnHook hook([&](RunContext& now, Feeds& feeds) {
    value = static_cast<double>(now.global_step()) / 2;
    feeds.add("rate", std::span<const double>(&value, 1));
  });
  for (int step = 0; step < 3; ++step) {
    context.fed.clear();
    context.step(hook);
    CHECK(context.fed.get<double>("rate")[0] == step / 2.0);
  }
  CHECK_THROWS_AS(FeedFnHook(nullptr), UsageError);
}

}  // namespace lockstep
