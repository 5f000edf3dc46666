#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <lockstep/base/random.hpp>
#include <lockstep/nn/kernels.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {

/// What a layer has made once for one thread's passes: primitives of a kernel library, packed weights. The
/// layer that made it knows its type.
class Plan {
 public:
  virtual ~Plan() = default;
};

/// What random numbers in a pass are keyed by, beside the layer's name: never by the rank or by what was
/// drawn before.
struct Draw {
  std::uint64_t seed = 0;
  std::int64_t step = 0;          ///< the global step before the update
  std::int64_t first_sample = 0;  ///< the micro-batch's first sample, counted within the global batch
};

/// What all layers share during one pass over one micro-batch.
struct Pass {
  const Kernels& kernels;
  std::int64_t samples = 0;          ///< rows of every input and output
  bool training = true;              ///< false: no backward follows
  Draw draw = {};                    ///< for layers that are random in training
  std::span<float> statistics = {};  ///< an arena of the buffers' layout; empty: nobody wants them
  float statistics_share = 1;        ///< 1 / micro-batches of the step
  Plan* plan = nullptr;              ///< what `plan` of this layer returned
  std::span<float> room = {};        ///< `room_size` of this layer, of any content, for this call alone
};

/// One layer of a model: a function of its input and its parameters, and the derivative of that function.
///
/// To write your own, copy relu.hpp (no parameters) or dense.hpp (parameters) and check it with
/// gradient_check.hpp. Shapes are those of one sample, channels last ([height, width, channels],
/// [positions, features]); buffers hold `pass.samples` samples one after the other.
///
/// Order of calls: `declare` once, the State is frozen, `initialize`, `plan` for each thread, then any number
/// of passes. During passes the layer is const and several threads may run it at once, each with buffers and
/// a plan of its own; what a backward needs to know of its forward is in `input`, `output` and `scratch`. A
/// pass allocates nothing after the first, and its results are a function of the values alone (promise: same
/// bits wherever it runs).
///
/// A layer with running statistics declares them as buffers of the State and, in a training forward, writes
/// into `pass.statistics` what this micro-batch adds to them. The contributions are summed canonically like
/// gradients and the sums added to the buffers after the step, so all micro-batches of a step read the same
/// old values.
class Layer {
 public:
  virtual ~Layer() = default;

  /// Lower-case word that starts the names of its parameters: "dense" becomes "dense0/weight".
  virtual std::string_view kind() const noexcept = 0;

  /// One line for people: "dense 784 -> 512, relu". Also kept in checkpoints: two layers that compute
  /// different functions of the same parameters differ in it.
  virtual std::string describe() const = 0;

  /// Learns the shape of a sample and declares the parameters as NAME/... Returns the shape of an output.
  /// Throws UsageError for an input that does not fit.
  virtual Shape declare(State& state, const std::string& name, const Shape& input) = 0;

  /// Writes initial values into the parameters: a function of `seed` and the tensors' places in the State.
  virtual void initialize(const State& state, std::uint64_t seed) const;

  /// What passes over up to `samples` samples need and is made once. Each thread has its own.
  virtual std::unique_ptr<Plan> plan(const Kernels& kernels, std::int64_t samples) const;

  /// Floats that one pass over `samples` samples keeps from forward to backward, beside input and output.
  virtual std::size_t scratch_size(std::int64_t samples) const;

  /// Floats that a call of `forward` or `backward` works with and nobody keeps: Pass::room. Layers share
  /// them, so they stay in the caches and cost memory once.
  virtual std::size_t room_size(std::int64_t samples) const;

  /// Multiplications and additions of one forward pass for one sample.
  virtual std::int64_t flops_per_sample() const;

  virtual void forward(const Pass& pass, std::span<const float> input, std::span<float> output,
                       std::span<float> scratch) const = 0;

  /// Writes (does not add) the parameters' gradients into `gradients`, an arena of the State's layout, and
  /// the input's into `input_gradient`, which is empty when nobody wants it. `output_gradient` may be
  /// overwritten.
  virtual void backward(const Pass& pass, std::span<const float> input, std::span<const float> output,
                        std::span<float> output_gradient, std::span<float> input_gradient,
                        std::span<float> gradients, std::span<float> scratch) const = 0;
};

/// The random numbers for the initial values of `tensor`: keyed by the seed and the tensor's index among the
/// parameters of `state`.
Random initial_random(const State& state, const Tensor& tensor, std::uint64_t seed);

/// The same for normal values.
void fill_normal(const State& state, const Tensor& tensor, std::uint64_t seed, float deviation);

/// Fills `tensor` with uniform values in [-limit, limit).
void fill_uniform(const State& state, const Tensor& tensor, std::uint64_t seed, float limit);

}  // namespace lockstep
