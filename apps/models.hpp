#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <lockstep/data/dataset.hpp>
#include <lockstep/nn/sequential.hpp>

namespace lockstep {

/// Which network, and its sizes; each uses those that belong to it.
struct ModelOptions {
  std::string model = "mlp";
  std::vector<std::int64_t> hidden = {512, 512};  ///< mlp
  std::int64_t depth = 20;                        ///< resnet: 6 n + 2
  std::int64_t layers = 4;                        ///< gpt
  std::int64_t width = 128;
  std::int64_t heads = 4;
  std::int64_t levels = 3;     ///< unet
  std::int64_t channels = 16;  ///< of its first level; each below has twice as many
  float dropout = 0;  ///< mlp, lenet: of what goes into Dense layers; gpt: of what is added to the residual
  float label_smoothing = 0;  ///< where the data has labels
  std::string loss = "mse";   ///< where it has values: mse, l1, huber or bce
};

/// Throws UsageError for sizes that cannot be. Local.
void check_model(const ModelOptions& options);

/// The network for the samples and the labels or values of `dataset`. Throws UsageError when they do not go
/// together. Local.
Sequential make_model(const ModelOptions& options, const Dataset& dataset);

/// The setting that keeps the sizes in a checkpoint, and its text: "hidden", "512,512".
std::string size_setting(const std::string& model);
std::string size_text(const ModelOptions& options);

/// The options that were written so. Throws UsageError for a text that was not.
ModelOptions model_options(const std::string& model, const std::string& sizes);

/// Widths of hidden layers as on the command line: "512,512", or "none". Throws UsageError.
std::vector<std::int64_t> parse_hidden(const std::string& text);

}  // namespace lockstep
