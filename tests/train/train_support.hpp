#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <lockstep/base/random.hpp>
#include <lockstep/data/dataset.hpp>
#include <lockstep/nn/dense.hpp>
#include <lockstep/nn/sequential.hpp>

namespace lockstep::test {

/// Random samples of six numbers in three classes.
class SmallDataset final : public Dataset {
 public:
  explicit SmallDataset(std::int64_t size) : size_(size) {}
  std::int64_t size() const noexcept override { return size_; }
  const std::vector<std::int64_t>& sample_shape() const noexcept override { return shape_; }
  int classes() const noexcept override { return 3; }
  void fill(std::span<const std::int64_t> indices, std::span<float> inputs,
            std::span<std::int32_t> labels) const override {
    for (std::size_t i = 0; i < indices.size(); ++i) {
      const Random random(5, Purpose::test, static_cast<std::uint32_t>(indices[i]));
      for (std::uint32_t j = 0; j < 6; ++j) inputs[6 * i + j] = random.normal(j);
      labels[i] = static_cast<std::int32_t>(random.below(50, 3));
    }
  }
  Digest digest() const override { return {}; }

 private:
  std::int64_t size_;
  std::vector<std::int64_t> shape_ = {6};
};

inline Sequential small_model(std::int64_t hidden) {
  Sequential model({6});
  model.add(Dense{hidden, Activation::relu});
  model.add(Dense{3});
  return model;
}

}  // namespace lockstep::test
