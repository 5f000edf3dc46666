#include "models.hpp"

#include <sstream>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/attention.hpp>
#include <lockstep/nn/batch_norm.hpp>
#include <lockstep/nn/binary_cross_entropy.hpp>
#include <lockstep/nn/concatenate.hpp>
#include <lockstep/nn/conv2d.hpp>
#include <lockstep/nn/conv_transpose2d.hpp>
#include <lockstep/nn/dense.hpp>
#include <lockstep/nn/dropout.hpp>
#include <lockstep/nn/embedding.hpp>
#include <lockstep/nn/gelu.hpp>
#include <lockstep/nn/global_avg_pool.hpp>
#include <lockstep/nn/huber.hpp>
#include <lockstep/nn/layer_norm.hpp>
#include <lockstep/nn/max_pool2d.hpp>
#include <lockstep/nn/mean_absolute_error.hpp>
#include <lockstep/nn/mean_squared_error.hpp>
#include <lockstep/nn/relu.hpp>
#include <lockstep/nn/residual.hpp>

namespace lockstep {
namespace {

Sequential make_mlp(const ModelOptions& options, const Shape& sample_shape, std::int64_t outputs) {
  Sequential network{sample_shape};
  for (const std::int64_t width : options.hidden) {
    network.add(Dense{width, Activation::relu});
    if (options.dropout > 0) network.add(Dropout{options.dropout});
  }
  network.add(Dense{outputs});
  return network;
}

Sequential make_lenet(const ModelOptions& options, const Shape& sample_shape, int classes) {
  Sequential network{sample_shape};
  // The pool before the ReLU: the same function, on a quarter of the values.
  network.add(Conv2d{32, 5}).add(MaxPool2d{2}).add(Relu{});
  network.add(Conv2d{64, 5}).add(MaxPool2d{2}).add(Relu{});
  if (options.dropout > 0) network.add(Dropout{options.dropout});
  network.add(Dense{128, Activation::relu});
  if (options.dropout > 0) network.add(Dropout{options.dropout});
  network.add(Dense{classes});
  return network;
}

/// He and others 2015, section 4.2: three groups of (depth - 2) / 6 blocks of two convolutions, of 16, 32 and
/// 64 channels; where they grow, a 1x1 convolution is the shortcut.
Sequential make_resnet(const ModelOptions& options, const Shape& sample_shape, int classes) {
  Sequential network{sample_shape};
  network.add(Conv2d{16, 3, {.padding = 1, .bias = false}}).add(BatchNorm{BatchNorm::Then::relu});
  std::int64_t channels = 16;
  for (const std::int64_t wanted : {16, 32, 64}) {
    for (std::int64_t block = 0; block < (options.depth - 2) / 6; ++block) {
      const std::int64_t stride = wanted == channels ? 1 : 2;
      Chain main, shortcut;
      main.add(Conv2d{wanted, 3, {.stride = stride, .padding = 1, .bias = false}})
          .add(BatchNorm{BatchNorm::Then::relu})
          .add(Conv2d{wanted, 3, {.padding = 1, .bias = false}})
          .add(BatchNorm{});
      if (stride > 1) shortcut.add(Conv2d{wanted, 1, {.stride = stride, .bias = false}}).add(BatchNorm{});
      network.add(Residual{std::move(main), std::move(shortcut), Residual::Then::relu});
      channels = wanted;
    }
  }
  network.add(GlobalAvgPool{}).add(Dense{classes});
  return network;
}

/// Two convolutions, what lies below, and two convolutions over both; `Network` is a Sequential or a Chain.
template <class Network>
void add_level(const ModelOptions& options, std::int64_t level, Network& network) {
  const std::int64_t width = options.channels << level;
  const auto two_convolutions = [&] {
    for (int i = 0; i < 2; ++i) network.add(Conv2d{width, 3, {.padding = 1}}).add(Relu{});
  };
  two_convolutions();
  if (level + 1 == options.levels) return;
  Chain below;
  below.add(MaxPool2d{2});
  add_level(options, level + 1, below);
  below.add(ConvTranspose2d{width, 2, 2});
  network.add(Concatenate{std::move(below)});
  two_convolutions();
}

/// Ronneberger and others 2015, with padding, so that fields keep their size.
Sequential make_unet(const ModelOptions& options, const Shape& sample_shape, const Shape& target_shape) {
  const std::int64_t least = std::int64_t{1} << (options.levels - 1);
  const auto is_field = [](const Shape& shape) { return shape.size() == 2 || shape.size() == 3; };
  if (!is_field(sample_shape) || !is_field(target_shape) || sample_shape[0] != target_shape[0] ||
      sample_shape[1] != target_shape[1] || sample_shape[0] % least != 0 || sample_shape[1] % least != 0) {
    throw UsageError(fmt::format(
        "--model unet of {} levels takes samples and targets [height, width] or [height, width, channels] of "
        "equal, multiples of {} as height and width (got {} and {})",
        options.levels, least, to_string(sample_shape), to_string(target_shape)));
  }
  Sequential network{sample_shape};
  add_level(options, 0, network);
  network.add(Conv2d{target_shape.size() == 2 ? 1 : target_shape[2], 1});
  return network;
}

/// Radford and others 2019: blocks with the norm first, bytes as tokens.
Sequential make_gpt(const ModelOptions& options, const Shape& sample_shape, int classes) {
  constexpr float kDeviation = 0.02F;
  const std::int64_t width = options.width;
  const auto dense = [](std::int64_t outputs) {
    return Dense{outputs, DenseOptions{.each_position = true, .deviation = kDeviation}};
  };
  Sequential network{sample_shape};
  network.add(Embedding{classes, width, true});
  for (std::int64_t layer = 0; layer < options.layers; ++layer) {
    Chain attention, mlp;
    attention.add(LayerNorm{}).add(dense(3 * width)).add(CausalAttention{options.heads}).add(dense(width));
    mlp.add(LayerNorm{}).add(dense(4 * width)).add(Gelu{}).add(dense(width));
    if (options.dropout > 0) {
      attention.add(Dropout{options.dropout});
      mlp.add(Dropout{options.dropout});
    }
    network.add(Residual{std::move(attention)}).add(Residual{std::move(mlp)});
  }
  network.add(LayerNorm{})
      .add(Dense{classes, DenseOptions{.each_position = true, .bias = false, .deviation = kDeviation}});
  return network;
}

std::unique_ptr<Loss> make_loss(const ModelOptions& options, bool labelled) {
  if (labelled) return std::make_unique<SoftmaxCrossEntropy>(options.label_smoothing);
  if (options.loss == "l1") return std::make_unique<MeanAbsoluteError>();
  if (options.loss == "huber") return std::make_unique<Huber>();
  if (options.loss == "bce") return std::make_unique<BinaryCrossEntropy>();
  return std::make_unique<MeanSquaredError>();
}

Sequential make_network(const ModelOptions& options, const Dataset& dataset) {
  const Shape& sample = dataset.sample_shape();
  const int classes = dataset.classes();
  const bool labelled = dataset.target_elements() == 0;
  if (options.model == "mlp")
    return make_mlp(options, sample, labelled ? classes : dataset.target_elements());
  if (options.model == "unet" && !labelled) return make_unet(options, sample, dataset.target_shape());
  if (options.model == "lenet" && labelled) return make_lenet(options, sample, classes);
  if (options.model == "resnet" && labelled) return make_resnet(options, sample, classes);
  if (options.model == "gpt" && labelled) return make_gpt(options, sample, classes);
  throw UsageError(fmt::format("there is no model '{}' for such data", options.model));
}

}  // namespace

std::vector<std::int64_t> parse_hidden(const std::string& text) {
  std::vector<std::int64_t> widths;
  if (text.empty() || text == "none") return widths;
  std::istringstream parts(text);
  std::string part;
  while (std::getline(parts, part, ',')) {
    std::size_t used = 0;
    std::int64_t width = 0;
    try {
      width = std::stoll(part, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used == 0 || used != part.size() || width < 1 || width > 1'000'000) {
      throw UsageError(
          fmt::format("--hidden '{}' is no list of layer widths; write for example 512,512", text));
    }
    widths.push_back(width);
  }
  return widths;
}

void check_model(const ModelOptions& options) {
  if (options.depth < 8 || options.depth > 1202 || (options.depth - 2) % 6 != 0) {
    throw UsageError(fmt::format(
        "--depth {} is no depth of a CIFAR ResNet; give 20, 32, 56 or another 6 n + 2", options.depth));
  }
  const auto check = [](const char* name, std::int64_t value, std::int64_t most) {
    if (value < 1 || value > most) {
      throw UsageError(fmt::format("--{} {} is out of range; give 1 to {}", name, value, most));
    }
  };
  if (!(options.dropout >= 0 && options.dropout < 1)) {
    throw UsageError(
        fmt::format("--dropout {} is out of range; give a number from 0 to below 1", options.dropout));
  }
  check("layers", options.layers, 1000);
  check("levels", options.levels, 12);
  check("channels", options.channels, 1 << 16);
  if (!(options.label_smoothing >= 0 && options.label_smoothing < 1)) {
    throw UsageError(fmt::format("--label_smoothing {} is out of range; give a number from 0 to below 1",
                                 options.label_smoothing));
  }
  check("width", options.width, 1 << 20);
  check("heads", options.heads, 1 << 20);
  if (options.width % options.heads != 0) {
    throw UsageError(
        fmt::format("--width {} is not a multiple of --heads {}, so heads cannot be equal; choose "
                    "heads that divide the width",
                    options.width, options.heads));
  }
}

Sequential make_model(const ModelOptions& options, const Dataset& dataset) {
  Sequential network = make_network(options, dataset);
  network.set_loss(make_loss(options, dataset.target_elements() == 0));
  return network;
}

std::string size_setting(const std::string& model) {
  return model == "mlp" ? "hidden" : "model_sizes";
}

std::string size_text(const ModelOptions& options) {
  if (options.model == "mlp") {
    return options.hidden.empty() ? "none" : fmt::format("{}", fmt::join(options.hidden, ","));
  }
  if (options.model == "resnet") return fmt::format("depth {}", options.depth);
  if (options.model == "unet") return fmt::format("levels {} channels {}", options.levels, options.channels);
  if (options.model == "gpt") {
    return fmt::format("layers {} width {} heads {}", options.layers, options.width, options.heads);
  }
  return "fixed";
}

ModelOptions model_options(const std::string& model, const std::string& sizes) {
  ModelOptions options;
  options.model = model;
  if (model == "mlp") {
    options.hidden = parse_hidden(sizes);
    return options;
  }
  std::istringstream words(sizes);
  std::string name;
  std::int64_t value = 0;
  while (words >> name >> value) {
    if (name == "depth") options.depth = value;
    if (name == "layers") options.layers = value;
    if (name == "width") options.width = value;
    if (name == "heads") options.heads = value;
    if (name == "levels") options.levels = value;
    if (name == "channels") options.channels = value;
  }
  check_model(options);
  return options;
}

}  // namespace lockstep
