#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include <lockstep/base/bfloat16.hpp>
#include <lockstep/base/random.hpp>
#include <lockstep/nn/dense.hpp>
#include <lockstep/nn/kernels.hpp>
#include <lockstep/nn/sequential.hpp>
#include <lockstep/state/arena.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep::test {

inline std::vector<float> normal_values(std::size_t count, std::uint32_t stream) {
  const Random random(7, Purpose::test, stream);
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = random.normal(static_cast<std::uint32_t>(i));
  return values;
}

inline std::vector<std::int32_t> random_labels(std::size_t count, std::uint32_t classes,
                                               std::uint32_t stream) {
  const Random random(7, Purpose::test, stream, 1);
  std::vector<std::int32_t> labels(count);
  for (std::size_t i = 0; i < count; ++i) {
    labels[i] = static_cast<std::int32_t>(random.below(static_cast<std::uint32_t>(i), classes));
  }
  return labels;
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

/// Every kernel library of this build.
inline std::vector<std::unique_ptr<Kernels>> all_kernels() {
  std::vector<std::unique_ptr<Kernels>> kernels;
  for (const KernelChoice choice : built_kernels()) kernels.push_back(make_kernels(choice));
  return kernels;
}

/// The same in every precision that this CPU has, and in bf16 as it is emulated where a CPU has none.
inline std::vector<std::unique_ptr<Kernels>> all_kernels_and_precisions() {
  std::vector<std::unique_ptr<Kernels>> kernels = all_kernels();
  for (const KernelChoice choice : built_kernels()) {
    for (const Precision precision : {Precision::bf16, Precision::emulated_bf16}) {
      kernels.push_back(make_kernels(choice, precision));
    }
  }
  return kernels;
}

/// The values that kernels multiply in place of `values`.
inline std::vector<float> as_operands(const Kernels& kernels, std::vector<float> values) {
  if (kernels.precision() != Precision::f32) {
    for (float& value : values) value = from_bfloat16(to_bfloat16(value));
  }
  return values;
}

/// A copy of some values that starts `shift` floats behind a 64-byte boundary.
class Shifted {
 public:
  Shifted(std::span<const float> values, std::size_t shift)
      : memory_(PlainAllocator{}.allocate(values.size() + shift + 1)),
        values_(memory_.values().subspan(shift, values.size())) {
    if (!values.empty()) std::memcpy(values_.data(), values.data(), values.size_bytes());
  }
  std::span<float> values() const { return values_; }

 private:
  Arena memory_;
  std::span<float> values_;
};

/// A model with its State, both ready for passes.
struct Trained {
  State state;
  Sequential model;
  PlainAllocator allocator;

  Trained(Shape input, std::vector<std::int64_t> hidden, std::int64_t classes) : model(std::move(input)) {
    for (const std::int64_t width : hidden) model.add(Dense{width, Activation::relu});
    model.add(Dense{classes});
    model.declare(state);
  }
  void ready(std::uint64_t seed = 1) {
    state.freeze(allocator);
    model.initialize(state, seed);
  }
  Arena gradients() { return allocator.allocate(state.parameter_elements()); }
};

}  // namespace lockstep::test
