#include "models.hpp"

#include <sstream>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/attention.hpp>
#include <lockstep/nn/batch_norm.hpp>
#include <lockstep/nn/conv2d.hpp>
#include <lockstep/nn/dense.hpp>
#include <lockstep/nn/dropout.hpp>
#include <lockstep/nn/embedding.hpp>
#include <lockstep/nn/gelu.hpp>
#include <lockstep/nn/global_avg_pool.hpp>
#include <lockstep/nn/layer_norm.hpp>
#include <lockstep/nn/max_pool2d.hpp>
#include <lockstep/nn/relu.hpp>
#include <lockstep/nn/residual.hpp>

namespace lockstep {
namespace {

Sequential make_mlp(const ModelOptions& options, const Shape& sample_shape, int classes) {
  Sequential network{sample_shape};
  for (const std::int64_t width : options.hidden) {
    network.add(Dense{width, Activation::relu});
    if (options.dropout > 0) network.add(Dropout{options.dropout});
  }
  network.add(Dense{classes});
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
  check("width", options.width, 1 << 20);
  check("heads", options.heads, 1 << 20);
  if (options.width % options.heads != 0) {
    throw UsageError(
        fmt::format("--width {} is not a multiple of --heads {}, so heads cannot be equal; choose "
                    "heads that divide the width",
                    options.width, options.heads));
  }
}

Sequential make_model(const ModelOptions& options, const Shape& sample_shape, int classes) {
  if (options.model == "mlp") return make_mlp(options, sample_shape, classes);
  if (options.model == "lenet") return make_lenet(options, sample_shape, classes);
  if (options.model == "resnet") return make_resnet(options, sample_shape, classes);
  if (options.model == "gpt") return make_gpt(options, sample_shape, classes);
  throw UsageError(fmt::format("model '{}' is unknown", options.model));
}

std::string size_setting(const std::string& model) {
  return model == "mlp" ? "hidden" : "model_sizes";
}

std::string size_text(const ModelOptions& options) {
  if (options.model == "mlp") {
    return options.hidden.empty() ? "none" : fmt::format("{}", fmt::join(options.hidden, ","));
  }
  if (options.model == "resnet") return fmt::format("depth {}", options.depth);
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
  }
  check_model(options);
  return options;
}

}  // namespace lockstep
