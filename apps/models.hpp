#pragma once

#include <cstdint>
#include <string>
#include <vector>

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
  float dropout = 0;  ///< mlp, lenet: of what goes into Dense layers; gpt: of what is added to the residual
};

/// Throws UsageError for sizes that cannot be. Local.
void check_model(const ModelOptions& options);

/// The network for samples of `sample_shape`. Throws UsageError when they do not go together. Local.
Sequential make_model(const ModelOptions& options, const Shape& sample_shape, int classes);

/// The setting that keeps the sizes in a checkpoint, and its text: "hidden", "512,512".
std::string size_setting(const std::string& model);
std::string size_text(const ModelOptions& options);

/// The options that were written so. Throws UsageError for a text that was not.
ModelOptions model_options(const std::string& model, const std::string& sizes);

/// Widths of hidden layers as on the command line: "512,512", or "none". Throws UsageError.
std::vector<std::int64_t> parse_hidden(const std::string& text);

}  // namespace lockstep
