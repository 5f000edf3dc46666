#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <lockstep/base/digest.hpp>

namespace lockstep {

/// Samples of one shape, numbered from 0, with labels or with values that a model should predict. All
/// functions are local; any thread may call them at any time.
class Dataset {
 public:
  virtual ~Dataset() = default;

  virtual std::int64_t size() const noexcept = 0;

  /// Shape of one sample, without the sample number: {28, 28} for small grey images.
  virtual const std::vector<std::int64_t>& sample_shape() const noexcept = 0;

  /// Labels are 0 to classes() - 1; 0 where there are none.
  virtual int classes() const noexcept = 0;

  /// How many labels belong to one sample: one, or one for each position of a text.
  virtual std::int64_t labels_per_sample() const noexcept { return 1; }

  /// Shape of the values that belong to one sample; empty where there are labels instead.
  virtual const std::vector<std::int64_t>& target_shape() const noexcept {
    static const std::vector<std::int64_t> none;
    return none;
  }

  /// Writes the samples `indices` one after the other (each row-major, pixels scaled to [0, 1]) and their
  /// labels. Allocates nothing. `inputs` must have room for exactly indices.size() samples, `labels` for
  /// their labels; otherwise, and for an index out of range, throws InternalError and the spans hold
  /// anything.
  virtual void fill(std::span<const std::int64_t> indices, std::span<float> inputs,
                    std::span<std::int32_t> labels) const = 0;

  /// Writes the values of the samples `indices`, likewise; only where there are any.
  virtual void fill_targets(std::span<const std::int64_t> /*indices*/, std::span<float> /*targets*/) const {}

  /// Digest of the content as it came, equal however it was compressed. The first call may take milliseconds.
  virtual Digest digest() const = 0;

  /// Number of floats of one sample.
  std::int64_t sample_elements() const noexcept {
    std::int64_t count = 1;
    for (const std::int64_t n : sample_shape()) count *= n;
    return count;
  }

  /// Number of values to predict for one sample; 0 where there are labels.
  std::int64_t target_elements() const noexcept {
    if (target_shape().empty()) return 0;
    std::int64_t count = 1;
    for (const std::int64_t n : target_shape()) count *= n;
    return count;
  }
};

}  // namespace lockstep
