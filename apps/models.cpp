#include "models.hpp"

#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/nn/conv2d.hpp>
#include <lockstep/nn/dense.hpp>
#include <lockstep/nn/max_pool2d.hpp>
#include <lockstep/nn/relu.hpp>

namespace lockstep {
namespace {

Sequential make_mlp(const ModelOptions& options, const Shape& sample_shape, int classes) {
  Sequential network{sample_shape};
  for (const std::int64_t width : options.hidden) network.add(Dense{width, Activation::relu});
  network.add(Dense{classes});
  return network;
}

Sequential make_lenet(const Shape& sample_shape, int classes) {
  Sequential network{sample_shape};
  // The pool before the ReLU: the same function, on a quarter of the values.
  network.add(Conv2d{32, 5}).add(MaxPool2d{2}).add(Relu{});
  network.add(Conv2d{64, 5}).add(MaxPool2d{2}).add(Relu{});
  network.add(Dense{128, Activation::relu}).add(Dense{classes});
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

void check_model(const ModelOptions&) {}

Sequential make_model(const ModelOptions& options, const Shape& sample_shape, int classes) {
  if (options.model == "mlp") return make_mlp(options, sample_shape, classes);
  if (options.model == "lenet") return make_lenet(sample_shape, classes);
  throw UsageError(fmt::format("model '{}' is unknown", options.model));
}

std::string size_setting(const std::string& model) {
  return model == "mlp" ? "hidden" : "model_sizes";
}

std::string size_text(const ModelOptions& options) {
  if (options.model == "mlp") {
    return options.hidden.empty() ? "none" : fmt::format("{}", fmt::join(options.hidden, ","));
  }
  return "fixed";
}

ModelOptions model_options(const std::string& model, const std::string& sizes) {
  ModelOptions options;
  options.model = model;
  if (model == "mlp") options.hidden = parse_hidden(sizes);
  return options;
}

}  // namespace lockstep
