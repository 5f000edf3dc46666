#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <oneapi/dnnl/dnnl.hpp>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/elementwise.hpp>

#include "bf16_product.hpp"
#include "convolution_by_products.hpp"
#include "kernels_internal.hpp"

// Of the OpenMP run time that oneDNN is linked with. Declared here since not every compiler that can build
// this file brings omp.h.
extern "C" {
int omp_get_max_threads();
void omp_set_num_threads(int);
}

namespace lockstep {
namespace {

/// Makes oneDNN work on the calling thread alone while it lives. OpenMP keeps this setting for each thread,
/// so others, and the caller afterwards, are not affected.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) {
    if (before_ != 1) omp_set_num_threads(1);
  }
  ~OneThread() {
    if (before_ != 1) omp_set_num_threads(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

/// Runs `work`, and turns what the library throws into an error of ours.
template <class Work>
auto guarded(std::string_view what, Work&& work) {
  const OneThread one_thread;
  try {
    return work();
  } catch (const dnnl::error& error) {
    throw InternalError(fmt::format("oneDNN refused {}: {}", what, error.what()));
  }
}

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

/// A primitive with its scratchpad. Its arguments are memory objects whose addresses are set before each run.
class Primitive {
 public:
  Primitive(dnnl::primitive primitive, const dnnl::memory::desc& scratchpad)
      : primitive_(std::move(primitive)), scratchpad_(scratchpad, engine()) {}

  template <std::size_t N>
  void run(const dnnl::stream& stream, const std::array<std::pair<int, const dnnl::memory*>, N>& arguments) {
    std::array<dnnl_exec_arg_t, N + 1> given{};
    std::size_t count = 0;
    for (const auto& [name, memory] : arguments) {
      if (memory != nullptr) given[count++] = {name, memory->get()};
    }
    given[count++] = {DNNL_ARG_SCRATCHPAD, scratchpad_.get()};
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(primitive_.get(), stream.get(), static_cast<int>(count), given.data()),
        "a primitive failed");
  }

 private:
  dnnl::primitive primitive_;
  dnnl::memory scratchpad_;
};

/// Memory of somebody else's.
dnnl::memory foreign(const dnnl::memory::desc& desc) {
  return {desc, engine(), DNNL_MEMORY_NONE};
}

void point(dnnl::memory& memory, std::span<const float> values) {
  // The library takes inputs and outputs alike by a plain pointer.
  memory.set_data_handle(const_cast<float*>(values.data()));
}

/// The library's convolutions over plain channels-last samples. The weights are rearranged to what each
/// primitive likes best, in memory that is kept; likewise inputs and gradients of outputs, if they are to be
/// rounded to bf16.
class OneDnnConvolution final : public Convolution {
 public:
  OneDnnConvolution(const ConvolutionShape& shape, std::int64_t samples, bool bf16)
      : shape_(shape), bf16_(bf16), stream_(engine()) {
    guarded("a convolution", [&] { at(samples); });
  }

  void forward(std::int64_t samples, std::span<const float> input, std::span<const float> weight,
               std::span<const float> bias, std::span<float> output) override {
    guarded("a convolution", [&] {
      Sized& sized = at(samples);
      Pass& pass = forward_pass(sized, !bias.empty());
      point(sized.output, output);
      if (!bias.empty()) point(sized.bias, bias);
      pack(pass, weight);
      pass.primitive->run<4>(stream_, {{{DNNL_ARG_SRC, operand(sized.input, sized.rounded_input, input)},
                                        {DNNL_ARG_WEIGHTS, &pass.packed},
                                        {DNNL_ARG_BIAS, bias.empty() ? nullptr : &sized.bias},
                                        {DNNL_ARG_DST, &sized.output}}});
    });
  }

  void input_gradient(std::int64_t samples, std::span<const float> output_gradient,
                      std::span<const float> weight, std::span<float> input_gradient) override {
    guarded("the gradient of a convolution's input", [&] {
      Sized& sized = at(samples);
      Pass& pass = input_gradient_pass(sized);
      point(sized.input, input_gradient);
      pack(pass, weight);
      pass.primitive->run<3>(
          stream_, {{{DNNL_ARG_DIFF_DST, operand(sized.output, sized.rounded_output, output_gradient)},
                     {DNNL_ARG_WEIGHTS, &pass.packed},
                     {DNNL_ARG_DIFF_SRC, &sized.input}}});
    });
  }

  void weight_gradient(std::int64_t samples, std::span<const float> input,
                       std::span<const float> output_gradient, std::span<float> weight_gradient,
                       std::span<float> bias_gradient) override {
    guarded("the gradient of a convolution's weights", [&] {
      Sized& sized = at(samples);
      Pass& pass = weight_gradient_pass(sized);
      point(pass.plain, weight_gradient);
      if (pass.reorder == nullptr) point(pass.packed, weight_gradient);
      pass.primitive->run<3>(
          stream_, {{{DNNL_ARG_SRC, operand(sized.input, sized.rounded_input, input)},
                     {DNNL_ARG_DIFF_DST, operand(sized.output, sized.rounded_output, output_gradient)},
                     {DNNL_ARG_DIFF_WEIGHTS, &pass.packed}}});
      if (pass.reorder != nullptr) {
        pass.reorder->run<2>(stream_, {{{DNNL_ARG_FROM, &pass.packed}, {DNNL_ARG_TO, &pass.plain}}});
      }
    });
    // Not by the library, which has but short vectors for it.
    if (!bias_gradient.empty()) column_sums(output_gradient, bias_gradient);
  }

 private:
  using Desc = dnnl::memory::desc;
  static constexpr auto kDirect = dnnl::algorithm::convolution_direct;

  struct Pass {
    std::unique_ptr<Primitive> primitive;
    dnnl::memory packed;                 // the weights as the primitive wants them
    dnnl::memory plain;                  // the weights as they lie in the arena
    std::unique_ptr<Primitive> reorder;  // null where the two are the same
  };

  /// All primitives for one number of samples.
  struct Sized {
    std::int64_t samples = 0;
    Desc input_desc, output_desc, bias_desc;
    Desc weight_desc;               // as they lie in the arena
    Desc any_weight_desc;           // as each primitive likes
    Desc any_weight_gradient_desc;  // in fp32 in any case
    dnnl::memory::dims stride, padding;
    dnnl::memory input, output, bias;
    dnnl::memory rounded_input, rounded_output;  // in bf16 alone
    std::array<Pass, 2> forward;                 // without and with bias; all are made when first used
    Pass input_gradient;
    Pass weight_gradient;
  };

  void pack(Pass& pass, std::span<const float> weight) {
    if (pass.reorder == nullptr) return point(pass.packed, weight);
    point(pass.plain, weight);
    pass.reorder->run<2>(stream_, {{{DNNL_ARG_FROM, &pass.plain}, {DNNL_ARG_TO, &pass.packed}}});
  }

  /// `values` as a primitive takes them: where they lie, or rounded.
  const dnnl::memory* operand(dnnl::memory& plain, const dnnl::memory& rounded,
                              std::span<const float> values) const {
    if (!bf16_) {
      point(plain, values);
      return &plain;
    }
    round_to_bf16(values, static_cast<std::uint16_t*>(rounded.get_data_handle()));
    return &rounded;
  }

  Desc input_operand(const Sized& sized) const {
    return bf16_ ? sized.rounded_input.get_desc() : sized.input_desc;
  }
  Desc output_operand(const Sized& sized) const {
    return bf16_ ? sized.rounded_output.get_desc() : sized.output_desc;
  }

  Sized& at(std::int64_t samples) {
    for (const auto& sized : sizes_) {
      if (sized->samples == samples) return *sized;
    }
    sizes_.push_back(make(samples));
    return *sizes_.back();
  }

  Pass make_pass(dnnl::primitive primitive, const Desc& scratchpad, const Desc& packed, const Desc& plain,
                 bool out) const {
    Pass pass;
    pass.primitive = std::make_unique<Primitive>(std::move(primitive), scratchpad);
    pass.plain = foreign(plain);
    if (packed == plain) {
      pass.packed = foreign(packed);
      return pass;
    }
    pass.packed = dnnl::memory(packed, engine());
    const dnnl::reorder::primitive_desc reorder(engine(), out ? packed : plain, engine(),
                                                out ? plain : packed, own_scratchpad());
    pass.reorder = std::make_unique<Primitive>(dnnl::reorder(reorder), reorder.scratchpad_desc());
    return pass;
  }

  static dnnl::primitive_attr own_scratchpad() {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    return attributes;
  }

  dnnl::convolution_forward::primitive_desc describe_forward(const Sized& sized, bool bias) const {
    using Forward = dnnl::convolution_forward;
    constexpr auto kTraining = dnnl::prop_kind::forward_training;
    const auto desc =
        bias ? Forward::desc(kTraining, kDirect, input_operand(sized), sized.any_weight_desc, sized.bias_desc,
                             sized.output_desc, sized.stride, sized.padding, sized.padding)
             : Forward::desc(kTraining, kDirect, input_operand(sized), sized.any_weight_desc,
                             sized.output_desc, sized.stride, sized.padding, sized.padding);
    return {desc, own_scratchpad(), engine()};
  }

  Pass& forward_pass(Sized& sized, bool bias) const {
    Pass& pass = sized.forward[bias ? 1 : 0];
    if (pass.primitive == nullptr) {
      const auto described = describe_forward(sized, bias);
      pass = make_pass(dnnl::convolution_forward(described), described.scratchpad_desc(),
                       described.weights_desc(), sized.weight_desc, false);
    }
    return pass;
  }

  Pass& input_gradient_pass(Sized& sized) const {
    using Backward = dnnl::convolution_backward_data;
    Pass& pass = sized.input_gradient;
    if (pass.primitive == nullptr) {
      const Backward::primitive_desc described(
          Backward::desc(kDirect, sized.input_desc, sized.any_weight_desc, output_operand(sized),
                         sized.stride, sized.padding, sized.padding),
          own_scratchpad(), engine(), describe_forward(sized, false));
      pass = make_pass(Backward(described), described.scratchpad_desc(), described.weights_desc(),
                       sized.weight_desc, false);
    }
    return pass;
  }

  Pass& weight_gradient_pass(Sized& sized) const {
    using Backward = dnnl::convolution_backward_weights;
    Pass& pass = sized.weight_gradient;
    if (pass.primitive == nullptr) {
      const Backward::primitive_desc described(
          Backward::desc(kDirect, input_operand(sized), sized.any_weight_gradient_desc, output_operand(sized),
                         sized.stride, sized.padding, sized.padding),
          own_scratchpad(), engine(), describe_forward(sized, false));
      pass = make_pass(Backward(described), described.scratchpad_desc(), described.diff_weights_desc(),
                       sized.weight_desc, true);
    }
    return pass;
  }

  std::unique_ptr<Sized> make(std::int64_t samples) const {
    using dnnl::memory;
    constexpr auto kFloat = memory::data_type::f32;
    // Depth is left out where it is 1: the library is faster in two dimensions.
    const std::size_t first = shape_.input[0] == 1 && shape_.kernel[0] == 1 && shape_.padding[0] == 0 ? 1 : 0;
    memory::dims input{samples, shape_.input_channels};
    memory::dims output{samples, shape_.output_channels};
    memory::dims stride, padding, kernel;
    for (std::size_t d = first; d < 3; ++d) {
      input.push_back(shape_.input[d]);
      output.push_back(shape_.output(d));
      stride.push_back(shape_.stride[d]);
      padding.push_back(shape_.padding[d]);
      kernel.push_back(shape_.kernel[d]);
    }
    const auto tag = first == 1 ? memory::format_tag::nhwc : memory::format_tag::ndhwc;
    const Desc input_desc(input, kFloat, tag);
    const Desc output_desc(output, kFloat, tag);
    const Desc bias_desc({shape_.output_channels}, kFloat, memory::format_tag::a);

    const std::int64_t in = shape_.input_channels / shape_.groups;
    const std::int64_t out = shape_.output_channels / shape_.groups;
    memory::dims weights{out, in};
    memory::dims strides{1, shape_.output_channels};
    if (shape_.groups > 1) {
      weights.insert(weights.begin(), shape_.groups);
      strides.insert(strides.begin(), out);
    }
    weights.insert(weights.end(), kernel.begin(), kernel.end());
    memory::dims kernel_strides(kernel.size());
    std::int64_t distance = in * shape_.output_channels;
    for (std::size_t d = kernel.size(); d-- > 0;) {
      kernel_strides[d] = distance;
      distance *= kernel[d];
    }
    strides.insert(strides.end(), kernel_strides.begin(), kernel_strides.end());
    const Desc plain(weights, kFloat, strides);
    const auto operand = bf16_ ? memory::data_type::bf16 : kFloat;

    auto sized = std::make_unique<Sized>();
    sized->samples = samples;
    sized->input_desc = input_desc;
    sized->output_desc = output_desc;
    sized->bias_desc = bias_desc;
    sized->weight_desc = plain;
    sized->any_weight_desc = Desc(weights, operand, memory::format_tag::any);
    sized->any_weight_gradient_desc = Desc(weights, kFloat, memory::format_tag::any);
    sized->stride = stride;
    sized->padding = padding;
    sized->input = foreign(input_desc);
    sized->output = foreign(output_desc);
    sized->bias = foreign(bias_desc);
    if (bf16_) {
      sized->rounded_input = memory(Desc(input, operand, tag), engine());
      sized->rounded_output = memory(Desc(output, operand, tag), engine());
    }
    return sized;
  }

  ConvolutionShape shape_;
  bool bf16_;
  dnnl::stream stream_;
  std::vector<std::unique_ptr<Sized>> sizes_;
};

class OneDnnKernels final : public Kernels {
 public:
  explicit OneDnnKernels(bool bf16) : bf16_(bf16) {}

  std::string_view name() const noexcept override { return "onednn"; }

  std::string description() const override {
    const dnnl_version_t& version = *dnnl_version();
    return fmt::format("oneDNN {}.{}.{} sgemm", version.major, version.minor, version.patch);
  }

  std::string instruction_set() const override {
    const auto isa = dnnl_get_effective_cpu_isa();
    switch (isa) {
      case dnnl_cpu_isa_sse41:
        return "SSE4.1";
      case dnnl_cpu_isa_avx:
        return "AVX";
      case dnnl_cpu_isa_avx2:
        return "AVX2";
      case dnnl_cpu_isa_avx512_core:
        return "AVX-512";
      case dnnl_cpu_isa_avx512_core_vnni:
        return "AVX-512 VNNI";
      case dnnl_cpu_isa_avx512_core_bf16:
        return "AVX-512 BF16";
      case dnnl_cpu_isa_avx512_core_amx:
        return "AVX-512 AMX";
      default:
        return fmt::format("instruction set {:#x}", static_cast<unsigned>(isa));
    }
  }

  Precision precision() const noexcept override { return bf16_ ? Precision::bf16 : Precision::f32; }

  void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
            const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool accumulate, float* c,
            std::int64_t ldc) const override {
    if (bf16_) {
      bf16_product(transpose_a == Transpose::yes, transpose_b == Transpose::yes, m, n, k, a, lda, b, ldb,
                   accumulate, {}, c, ldc);
      return;
    }
    const OneThread one_thread;
    const auto letter = [](Transpose transpose) { return transpose == Transpose::yes ? 'T' : 'N'; };
    const dnnl_status_t status = dnnl_sgemm(letter(transpose_a), letter(transpose_b), m, n, k, 1.0F, a, lda,
                                            b, ldb, accumulate ? 1.0F : 0.0F, c, ldc);
    if (status != dnnl_success) {
      throw InternalError(fmt::format("oneDNN refused a {} x {} x {} matrix product (status {})", m, n, k,
                                      static_cast<int>(status)));
    }
  }

  void affine(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, const float* b,
              std::span<const float> bias, bool relu, float* c) const override {
    if (bf16_) {
      bf16_product(false, false, m, n, k, a, k, b, n, false, {bias.data(), relu}, c, n);
    } else {
      Kernels::affine(m, n, k, a, b, bias, relu, c);
    }
  }

  std::unique_ptr<Convolution> convolution(const ConvolutionShape& shape,
                                           std::int64_t samples) const override {
    // The library's own take up to a third longer over many pixels, and are the faster ones for few channels.
    constexpr std::int64_t kManyChannels = 32;
    const bool many = std::min(shape.input_channels, shape.output_channels) >= kManyChannels;
    if (!bf16_ && many && is_pointwise(shape)) return convolution_by_products(*this, shape);
    return std::make_unique<OneDnnConvolution>(shape, samples, bf16_);
  }

 private:
  bool bf16_;
};

}  // namespace

bool onednn_is_built() noexcept {
  return true;
}

bool onednn_has_bf16() noexcept {
  constexpr auto kWanted = static_cast<unsigned>(dnnl_cpu_isa_avx512_core_bf16);
  return (static_cast<unsigned>(dnnl_get_effective_cpu_isa()) & kWanted) == kWanted;
}

std::unique_ptr<Kernels> make_onednn_kernels(bool bf16) {
  return std::make_unique<OneDnnKernels>(bf16);
}

}  // namespace lockstep
